"""SpeakerVerSim's own arithmetic, quirks included, so that its results can be compared.

A reply takes as long as the upload; every leg and step has noise of its own; workers have no
queues; users are hashed by `user % workers`; one enrolment utterance is as long as a request. A
request that waited for a re-enrolment is sent to a worker drawn anew, which may score the fresh
profile with another version (SSO and SSO-sync). The list of profiles is one that all users share
(SSO-mul and SD). Where no worker is known to be of the profile's version, the last one is taken
(SSO-sync). The run is cut off at its end: what is not answered by then does not count.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np

from fedspk.errors import FedspkError
from fedspk.seeds import numpy_generator
from simulations.versioning.compiled import Loop
from simulations.versioning.config import VersioningConfig
from simulations.versioning.occupancy import mean_number
from simulations.versioning.result import RunResult
from simulations.versioning.strategies import Strategy
from simulations.versioning.workload import Floats, Ints, draw_users, number_speakers

_OLD, _NEW = 1, 2  # versions of models and profiles; SD's workers and users have 0, too
# Legs and steps of a request, in this order; from WRITE on, of one that is re-enrolled.
_UP, _READ, _TO, _INFER, _FROM, _WRITE, _TO_2, _INFER_2, _FROM_2, _DOWN = range(10)
_STRATEGIES = ("SSO", "SSO-sync", "SSO-hash", "SSO-mul", "SD")


def simulate_compat(config: VersioningConfig, strategy: Strategy, run: int) -> RunResult:
    """Simulate one run as SpeakerVerSim does.

    Raises:
        FedspkError: SpeakerVerSim does not have the strategy.
    """
    if strategy.name not in _STRATEGIES:
        raise FedspkError(
            f"strategy {strategy.name}: the compat model has only {', '.join(_STRATEGIES)}; "
            "choose one of these or model default."
        )
    return _Run(config, strategy, run).simulate()


class _Run:
    """The draws of a run, the times that follow from them, and what a strategy makes of both."""

    def __init__(self, config: VersioningConfig, strategy: Strategy, run: int) -> None:
        self.config, self.strategy, means = config, strategy, config.compat
        self.end_s, self.workers = config.duration_s, config.workers
        self.sent = np.arange(math.ceil(self.end_s / config.interval)) * config.interval
        count = len(self.sent)
        self.user = draw_users(config, run, count)
        self.updated = numpy_generator(config.seed, "versioning", "rollout", run).exponential(
            config.rollout.mean_s, config.workers
        )
        rng = numpy_generator(config.seed, "versioning", "workers", run)
        self.choice = rng.random((4, count))
        rng = numpy_generator(config.seed, "versioning", "network", run)
        mean = np.empty((10, 1))
        mean[[_UP, _DOWN]] = means.client_frontend_s
        mean[[_TO, _FROM, _TO_2, _FROM_2]] = means.frontend_worker_s
        mean[[_INFER, _INFER_2]] = means.inference_s
        mean[_READ], mean[_WRITE] = means.database_read_s, means.database_write_s
        noise = rng.standard_normal((10, count))
        noise *= means.noise
        noise += 1.0
        noise *= mean
        self.step = np.maximum(noise, 1e-10, out=noise)
        self.poll_leg = means.frontend_worker_s * np.maximum(
            1.0 + means.noise * rng.standard_normal((2, config.workers)), 0.0
        )
        self.front = self.sent + self.step[_UP] + self.step[_READ]  # the profile is there
        self.at_worker = self.front + self.step[_TO]
        self.inferred = self.at_worker + self.step[_INFER]
        self.returned = self.inferred + self.step[_FROM]
        self.written = self.returned + self.step[_WRITE]
        self.at_worker_2 = self.written + self.step[_TO_2]

    def simulate(self) -> RunResult:
        if self.strategy.name == "SD":
            return self._double()
        if self.strategy.keeps_profiles:
            return self._multiple()
        return self._single()

    def _single(self) -> RunResult:
        workers = self.workers
        first = (self.choice[0] * workers).astype(np.int64)
        again = (self.choice[2] * workers).astype(np.int64)
        if self.strategy.select == "hash":
            first = again = self.user % workers
        synchronised = self.strategy.select == "synchronised"
        known = self._known() if synchronised else np.full(workers, np.inf)
        by_known = np.argsort(known, kind="stable")
        order = np.argsort(self.front, kind="stable")
        user, users = number_speakers(self.user, self.config.users)
        profile = np.full(users, _OLD)
        count = len(order)
        consistent, arguments = _replay_loop(
            *(a[order] for a in (self.front, self.at_worker, self.written, self.at_worker_2)),
            *(a[order] for a in (user, first, self.choice[1], again, self.choice[3])),
            self.updated,
            known,
            np.append(known[by_known], np.inf),
            by_known,
            synchronised,
            profile,
            *(np.zeros(count, np.int64) for _ in range(4)),
        )
        bounce, first, again, cross = (np.empty_like(a) for a in arguments[-4:])
        for target, found in zip((bounce, first, again, cross), arguments[-4:], strict=True):
            target[order] = found
        return self._result(first, again, bounce, bounce > 0, cross > 0, consistent)

    def _known(self) -> Floats:
        """Return when the frontend learns of each worker's update (workers,)."""
        there, back = self.poll_leg
        interval = self.config.sync_interval
        poll = np.maximum(np.ceil((self.updated - there) / interval), 1.0)
        known: Floats = poll * interval + there + back
        return known

    def _multiple(self) -> RunResult:
        first, again = (self.choice[[0, 2]] * self.workers).astype(np.int64)
        is_new = self.updated[first] <= self.front
        # The first profile of the new version that is written serves everybody.
        shared = self.written[is_new].min(initial=math.inf)
        renewed = is_new & (self.front < shared)
        cross = ~renewed & (self.updated[first] <= self.at_worker) & (self.at_worker < shared)
        return self._result(first, again, np.where(renewed, 2, 0), renewed, cross, shared)

    def _double(self) -> RunResult:
        first = (self.choice[0] * self.workers).astype(np.int64)
        is_new = self.updated[first] <= self.at_worker
        enrolled = self.at_worker + self.step[_TO_2]
        returned = enrolled + self.step[_INFER_2] + self.step[_FROM_2]
        shared = (returned + self.step[_WRITE])[is_new].min(initial=math.inf)
        renewed = is_new & (self.at_worker < shared)
        none = np.zeros(len(first), np.int64)
        return self._result(
            first, first, none, none > 0, none > 0, shared, (renewed, enrolled, returned)
        )

    def _result(
        self,
        first: Ints,
        again: Ints,
        bounce: Ints,
        renewed: Any,
        cross: Any,
        consistent: float,
        background: tuple[Any, Floats, Floats] | None = None,
    ) -> RunResult:
        """Put together what happened before the end of the run.

        first, again: the worker at first and after re-enrolment. bounce: 1 backward, 2 forward.
        renewed: re-enrolled in the foreground. background: of which requests, at the worker and
        back from it.
        """
        inferred_2 = self.at_worker_2 + self.step[_INFER_2]
        answered = np.where(renewed, inferred_2 + self.step[_FROM_2], self.returned)
        answered += self.step[_DOWN]
        done = answered < self.end_s
        at_front = self.front < self.end_s
        jobs = [(self.at_worker, self.inferred, first)]
        jobs.append((self.at_worker_2[renewed], inferred_2[renewed], again[renewed]))
        inferences = 1.0 + renewed
        background_count = 0
        if background is not None:
            asked, enrolled, returned = background
            jobs.append((enrolled[asked], returned[asked], first[asked]))
            back_in_time = asked & (returned < self.end_s)
            inferences += back_in_time
            background_count = int(back_in_time.sum())
        begin, end, worker = (np.concatenate(parts) for parts in zip(*jobs, strict=True))
        utilisation = mean_number(begin, end, worker, self.workers, self.end_s)
        scored_at = np.where(renewed, self.at_worker_2, self.at_worker)
        return RunResult(
            requests=int(done.sum()),
            failed=0,
            sent_s=self.sent[done],
            latency_s=(answered - self.sent)[done],
            flops=inferences[done] * (self.config.compat.gflops_per_inference * 1e9),
            backward_bounces=int((at_front & (bounce == 1)).sum()),
            forward_bounces=int((at_front & (bounce == 2)).sum()),
            cross_version_scorings=int((cross & (scored_at < self.end_s)).sum()),
            reenrolments_foreground=int((renewed & (self.returned < self.end_s)).sum()),
            reenrolments_background=background_count,
            downtime_s=0.0,
            consistent_after_s=float(consistent) if 0 <= consistent < self.end_s else None,
            worker_requests=np.bincount(
                np.where(renewed, again, first)[done], minlength=self.workers
            ).astype(np.int64),
            utilisation=utilisation,
            queue_length=np.zeros_like(utilisation),
        )


def _replay(
    front: Any,
    at_worker: Any,
    written: Any,
    at_worker_2: Any,
    user: Any,
    first: Any,
    pick: Any,
    again: Any,
    pick_again: Any,
    updated: Any,
    known: Any,
    known_ascending: Any,
    by_known: Any,
    synchronised: bool,
    profile: Any,
    bounce: Any,
    served: Any,
    served_again: Any,
    cross: Any,
) -> float:
    """Replay single-version requests in order of `front`; return when all profiles were new, or -1.

    The first nine (requests,): the times named as in `_Run`, whose the request is, the worker
    drawn at first and after a re-enrolment, each with a uniform number that picks among those of
    the profile's version. updated, known (workers,): when each is updated and when the frontend
    knows; known_ascending ends at infinity. profile (users,) and the last four (requests,) are
    filled: 1 backward or 2 forward bounce, the workers in the end, 1 where versions differed.
    """
    last, users = len(updated) - 1, len(profile)
    current = fit = 0
    consistent = -1.0
    writes = [(math.inf, 0, 0)]  # (time, user, version)
    for i in range(len(front)):
        t = front[i]
        while writes[0][0] <= t:
            at, u, v = heapq.heappop(writes)
            current += v - profile[u]
            if v > profile[u] and current == users:
                consistent = at
            elif v < profile[u]:
                consistent = -1.0
            profile[u] = v
        u = user[i]
        has = profile[u]
        w = first[i]
        if synchronised and has == _NEW and known[w] > t:
            while known_ascending[fit] <= t:
                fit += 1
            w = by_known[int(pick[i] * fit)] if fit else last
        version = _NEW if updated[w] <= t else _OLD
        served[i] = w
        on_arrival = _NEW if updated[w] <= at_worker[i] else _OLD
        if version == has:
            cross[i] = on_arrival != has
            continue
        bounce[i] = 1 if version < has else 2
        heapq.heappush(writes, (written[i], u, on_arrival))
        w = again[i]
        if synchronised and on_arrival == _NEW and known[w] > written[i]:
            known_now = fit
            while known_ascending[known_now] <= written[i]:
                known_now += 1
            w = by_known[int(pick_again[i] * known_now)] if known_now else last
        served_again[i] = w
        cross[i] = on_arrival != (_NEW if updated[w] <= at_worker_2[i] else _OLD)
    return consistent


_replay_loop = Loop(_replay)
