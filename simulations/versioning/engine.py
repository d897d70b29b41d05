"""The default model: what a strategy makes of a run's requests, from draws to results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulations.versioning import kernel
from simulations.versioning.compiled import Loop
from simulations.versioning.config import VersioningConfig
from simulations.versioning.occupancy import BINS, mean_number
from simulations.versioning.result import RunResult
from simulations.versioning.rollout import (
    NO_POLLS,
    NO_STOPS,
    OLD,
    Schedule,
    Stops,
    draw_crashes,
    draw_schedule,
    draw_stops,
    group_bounds,
    poll_answers,
)
from simulations.versioning.strategies import Selection, Strategy
from simulations.versioning.workload import (
    Floats,
    Ints,
    Workload,
    draw_phases,
    draw_workload,
    number_speakers,
)

_MBIT = 1e6
_serve = Loop(kernel.serve)


@dataclass(frozen=True)
class _Paths:
    """Seconds that a request and a re-enrolment take on their ways (Eq. 1-3).

    ready: the request stands at the frontend with its profile. transfer: from there to the worker.
    back: from the worker to the device. upload: until a device's enrolment audio is at the
    worker, from when the worker asks for it. Each (requests,).
    fetch, write: enrolment audio to the worker, and the new profile to where it is kept.
    """

    ready: Floats
    transfer: Floats
    back: Floats
    upload: Floats
    fetch: float
    write: float


def simulate_service(config: VersioningConfig, strategy: Strategy, run: int) -> RunResult:
    """Simulate one run of a strategy whose models run on workers.

    Raises:
        FedspkError: the trace cannot be used.
    """
    load = draw_workload(config, run)
    groups = min(config.groups, config.workers) if strategy.select == "group" else 1
    schedule = draw_schedule(config, run, groups=groups)
    paths = _paths(config, strategy, load)
    stops = draw_stops(config) if strategy.offline else NO_STOPS
    order = np.argsort(paths.ready, kind="stable")
    user, users = load.user, config.users
    if not strategy.handshake:
        user, users = number_speakers(user, users)
    requests = {
        "ready": paths.ready,
        "transfer": paths.transfer,
        "user": user,
        "first": choose_workers(strategy.select, load, config.workers, groups),
        "second": load.second,
        "work": load.audio_s * config.worker.real_time_factor,
        "upload": paths.upload,
    }
    handshake_s = config.devices.handshake_s if strategy.handshake else 0.0
    room = _room(config, strategy, len(order), users)
    if strategy.handshake:
        room["phase"] = draw_phases(config, run)
    consistent, arguments = _serve(
        *(values[order] for values in requests.values()),
        config.workers,
        config.worker.concurrency or 0,
        *_versions(config, strategy, schedule),
        *draw_crashes(config, run).reshape(-1, 2).T.copy(),
        *(stops.begin, stops.end, stops.version),
        strategy.select == "synchronised",
        strategy.versions_served == 2,
        strategy.keeps_profiles,
        strategy.profiles == "device",
        handshake_s,
        schedule.newest,
        paths.fetch,
        config.enrolment.audio_s * config.worker.real_time_factor,
        paths.write,
        config.faults.timeout_s,
        config.faults.retries,
        config.duration_s,
        config.duration_s / BINS,
        *room.values(),
    )
    filled = dict(zip(room, arguments[-len(room) :], strict=True))
    as_sent = np.argsort(order)
    for name in ("arrived", "start", "end", "served_by", "scored", "renewals"):
        filled[name] = filled[name][as_sent]
    cross = _cross_version_scorings(strategy, schedule, stops, filled)
    return _result(config, load, paths, stops, filled, cross, consistent)


def _paths(config: VersioningConfig, strategy: Strategy, load: Workload) -> _Paths:
    links, database, kbit = config.links, config.database, 1e3
    on_device = strategy.profiles == "device"
    client, inside = links.client_mbit_per_s * _MBIT, links.worker_mbit_per_s * _MBIT
    request_bits = load.audio_s * (config.audio.kbit_per_s * kbit)
    enrolment_bits = config.enrolment.audio_s * config.audio.kbit_per_s * kbit
    reply_bits, profile_bits = 8.0 * links.reply_bytes, 8.0 * links.profile_bytes
    if on_device:
        request_bits = request_bits + profile_bits
    back_inside = links.worker_latency_s + reply_bits / inside
    back = back_inside + links.client_latency_s + reply_bits / client * load.network
    arrived = load.sent_s + links.client_latency_s + request_bits / client * load.network
    transfer = links.worker_latency_s + request_bits / inside
    fetch = links.worker_latency_s + enrolment_bits / inside
    if not on_device:
        none = np.zeros(len(load.sent_s))
        fetch += database.read_s
        return _Paths(arrived + database.read_s, transfer, back, none, fetch, database.write_s)
    upload = links.client_latency_s + enrolment_bits / client * load.network
    return _Paths(
        ready=arrived,
        transfer=transfer,
        back=back,
        upload=back + upload + fetch,
        fetch=links.client_latency_s + enrolment_bits / client + fetch,
        write=links.client_latency_s + profile_bits / client,
    )


def _versions(
    config: VersioningConfig, strategy: Strategy, schedule: Schedule
) -> tuple[int, Floats, Ints, Floats, Ints, Ints]:
    """Return the workers' changes of version, and the polls' answers, as `kernel.serve` asks."""
    at, to = schedule.at, schedule.to
    if strategy.offline:  # versions change with the stops
        at, to = np.full((config.workers, 1), np.inf), np.full((config.workers, 1), OLD)
    polls = NO_POLLS
    if strategy.select == "synchronised":
        polls = poll_answers(schedule, config.sync_interval, config.links.worker_latency_s)
    return (
        *(at.shape[1], at.ravel(), to.ravel()),
        *(np.append(polls.at, np.inf), np.append(polls.worker, 0), np.append(polls.version, 0)),
    )


def _room(
    config: VersioningConfig, strategy: Strategy, requests: int, users: int
) -> dict[str, Any]:
    """Return what `kernel.serve` fills, by name and in its order."""
    workers = config.workers
    servers = workers * (config.worker.concurrency or 1)
    initial = 0b11 if strategy.versions_served == 2 else 0b10
    return {
        "profile": np.full(users, initial),
        "phase": np.zeros(users),
        "free": np.zeros(servers),
        "attempts": np.zeros(requests, np.int64),
        "table": np.full(workers, OLD),
        "candidates": np.arange(workers),
        "arrived": np.zeros(requests),
        "start": np.zeros(requests),
        "end": np.zeros(requests),
        "served_by": np.zeros(requests, np.int64),
        "scored": np.zeros(requests, np.int64),
        "renewals": np.zeros(requests, np.int64),
        "background_s": np.zeros(workers * BINS),
        "pending": np.zeros(users, np.int64),
        "crashed": np.zeros(workers, np.int64),
        "head": np.full(workers, -1),
        "tail": np.full(workers, -1),
        "count": np.zeros(kernel.COUNTS, np.int64),
    }


def _cross_version_scorings(
    strategy: Strategy, schedule: Schedule, stops: Stops, filled: dict[str, Any]
) -> int:
    """Count the answers whose profile is of no version that their worker ran as it served them.

    The versions that ran follow from the drawn updates and from nothing that `kernel.serve`
    decided, so a mistake there shows here.
    """
    start, worker = filled["start"], filled["served_by"]
    running = np.full(len(start), OLD)
    if strategy.offline:
        for until, version in zip(stops.end, stops.version, strict=True):
            running[until <= start] = version
    else:
        for at, to in zip(schedule.at.T, schedule.to.T, strict=True):
            running = np.where(at[worker] <= start, to[worker], running)
    # The newest version of a set v is its highest bit: 2**v <= set < 2**(v + 1).
    profile = np.frexp(filled["scored"])[1] - 1
    age = running - profile
    crossed = (age < 0) | (age >= strategy.versions_served)
    return int((crossed & (filled["end"] >= 0)).sum())


def _result(
    config: VersioningConfig,
    load: Workload,
    paths: _Paths,
    stops: Stops,
    filled: dict[str, Any],
    cross: int,
    consistent: float,
) -> RunResult:
    end_s, workers, count = config.duration_s, config.workers, filled["count"]
    arrived, start, end, worker = (filled[k] for k in ("arrived", "start", "end", "served_by"))
    done = end >= 0
    waits = done & (start > arrived)
    begun = stops.begin < end_s
    stopped = np.minimum(stops.end[begun], end_s) - stops.begin[begun]
    # What no request asked for, re-enrolments by handshakes and of `offline`, all requests bear.
    offline = config.users * int(begun.sum())
    asked = int(filled["renewals"].sum())
    background = int(count[kernel.BACKGROUND]) + offline
    unasked = int(count[kernel.FOREGROUND]) + background - asked
    audio_s = load.audio_s * done
    audio_s += config.enrolment.audio_s * (filled["renewals"] + unasked / len(done))
    busy = mean_number(start[done], end[done], worker[done], workers, end_s)
    busy += filled["background_s"].reshape(workers, BINS) * (BINS / end_s)
    return RunResult(
        requests=len(done),
        failed=int(count[kernel.FAILED]),
        sent_s=load.sent_s,
        latency_s=np.where(done, end + paths.back - load.sent_s, np.nan),
        flops=audio_s * (config.worker.gflops_per_second * 1e9),
        backward_bounces=int(count[kernel.BACKWARD]),
        forward_bounces=int(count[kernel.FORWARD]),
        cross_version_scorings=cross,
        reenrolments_foreground=int(count[kernel.FOREGROUND]),
        reenrolments_background=background,
        downtime_s=float(stopped.sum()),
        consistent_after_s=_since(consistent, config),
        worker_requests=np.bincount(worker[done], minlength=workers).astype(np.int64),
        utilisation=busy / (config.worker.concurrency or 1),
        queue_length=mean_number(arrived[waits], start[waits], worker[waits], workers, end_s),
    )


def choose_workers(select: Selection, load: Workload, workers: int, groups: int) -> Ints:
    """Return the worker that each request is meant for (requests,), before versions are seen."""
    if select == "hash":
        return spread(load.user, workers)
    if select == "group":
        bounds = group_bounds(workers, groups)
        group = spread(load.user, groups)
        size = bounds[group + 1] - bounds[group]
        return bounds[group] + (load.first * size).astype(np.int64)
    return (load.first * workers).astype(np.int64)


def spread(user: Ints, places: int) -> Ints:
    """Return a place for each user, evenly and always the same, by multiplicative hashing.

    >>> spread(np.arange(6), 3).tolist()
    [0, 1, 0, 2, 1, 0]
    """
    mixed = (user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return ((mixed * np.uint64(places)) >> np.uint64(32)).astype(np.int64)


def _since(consistent: float, config: VersioningConfig) -> float | None:
    """Return seconds since the rollout began; None where the run ended before it came."""
    if not 0 <= consistent < config.duration_s or config.rollout.start_s >= config.duration_s:
        return None
    return max(consistent - config.rollout.start_s, 0.0)
