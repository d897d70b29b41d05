"""The default model: what a strategy makes of a run's requests, from draws to results."""

from __future__ import annotations

import numpy as np

from simulations.versioning import kernel
from simulations.versioning.compiled import Loop
from simulations.versioning.config import VersioningConfig
from simulations.versioning.occupancy import BINS, mean_number
from simulations.versioning.result import RunResult
from simulations.versioning.rollout import (
    OLD,
    Polls,
    Schedule,
    draw_crashes,
    draw_schedule,
    group_bounds,
    poll_answers,
)
from simulations.versioning.strategies import Selection, Strategy
from simulations.versioning.workload import Floats, Ints, Workload, draw_phases, draw_workload

_MBIT = 1e6
_serve = Loop(kernel.serve, "_order")


def simulate_service(config: VersioningConfig, strategy: Strategy, run: int) -> RunResult:
    """Simulate one run of a strategy whose models run on workers.

    Raises:
        FedspkError: the trace cannot be used.
    """
    load = draw_workload(config, run)
    groups = min(config.groups, config.workers) if strategy.select == "group" else 1
    schedule = draw_schedule(config, run, groups=groups)
    on_device = strategy.profiles == "device"
    double = strategy.versions_served == 2
    requests, workers, users = len(load.sent_s), config.workers, config.users

    # Seconds on the way: device to frontend, frontend to worker, and back (Eq. 1-3).
    bits = load.audio_s * (config.audio.kbit_per_s * 1e3)
    if on_device:
        bits = bits + 8.0 * config.links.profile_bytes
    client, inside = config.links.client_mbit_per_s * _MBIT, config.links.worker_mbit_per_s * _MBIT
    to_frontend = config.links.client_latency_s + bits / client * load.network
    reply = 8.0 * config.links.reply_bytes
    back = (
        *(config.links.client_latency_s, reply / client * load.network),
        *(config.links.worker_latency_s, reply / inside),
    )
    back_s = sum(back[1:], start=np.full(requests, back[0]))
    ready = load.sent_s + to_frontend + (0.0 if on_device else config.database.read_s)
    order = np.argsort(ready, kind="stable")

    # A re-enrolment: audio from the database or the device, computing, and the profile's way back.
    audio_s = config.enrolment.audio_s
    enrolment_bits = audio_s * config.audio.kbit_per_s * 1e3
    compute_s = audio_s * config.worker.real_time_factor
    inside_s = config.links.worker_latency_s + enrolment_bits / inside
    upload = np.zeros(requests)
    if on_device:
        asked = back_s + config.links.client_latency_s + enrolment_bits / client * load.network
        upload = asked + inside_s
        profile_bits = 8.0 * config.links.profile_bytes
        write_s = config.links.client_latency_s + profile_bits / client
        fetch_s = config.links.client_latency_s + enrolment_bits / client + inside_s
    else:
        write_s = config.database.write_s
        fetch_s = config.database.read_s + inside_s

    at, to = schedule.at, schedule.to
    stop_from, stop_until, stop_version = _stops(config, schedule, strategy.offline)
    if strategy.offline:
        at = np.full((workers, 1), np.inf)
        to = np.full((workers, 1), OLD)
    synchronised = strategy.select == "synchronised"
    nothing = Polls(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
    polls = (
        poll_answers(schedule, config.sync_interval, config.links.worker_latency_s)
        if synchronised
        else nothing
    )
    crashes = draw_crashes(config, run)
    concurrency = config.worker.concurrency or 0
    handshake_s = config.devices.handshake_s if strategy.handshake else 0.0
    phase = draw_phases(config, run) if handshake_s else np.zeros(users)
    first = choose_workers(strategy.select, load, workers, groups)

    found = {
        "profile": np.full(users, 0b11 if double else 0b10),
        "phase": phase,
        "free": np.zeros(workers * max(concurrency, 1)),
        "attempts": np.zeros(requests, np.int64),
        "table": np.full(workers, OLD),
        "candidates": np.arange(workers),
        "arrived": np.zeros(requests),
        "start": np.zeros(requests),
        "end": np.zeros(requests),
        "served_by": np.zeros(requests, np.int64),
        "renewals": np.zeros(requests, np.int64),
        "background_s": np.zeros(workers * BINS),
        "pending": np.zeros(users, np.int64),
        "crashed": np.zeros(workers, np.int64),
        "count": np.zeros(5, np.int64),
    }
    consistent, arguments = _serve(
        ready[order],
        (config.links.worker_latency_s + bits / inside)[order],
        load.user[order],
        first[order],
        load.second[order],
        (load.audio_s * config.worker.real_time_factor)[order],
        upload[order],
        workers,
        concurrency,
        at.shape[1],
        at.ravel(),
        to.ravel(),
        np.append(polls.at, np.inf),
        np.append(polls.worker, 0),
        np.append(polls.version, 0),
        crashes[:, :, 0].ravel(),
        crashes[:, :, 1].ravel(),
        stop_from,
        stop_until,
        stop_version,
        synchronised,
        double,
        strategy.keeps_profiles,
        on_device,
        handshake_s,
        schedule.newest,
        fetch_s,
        compute_s,
        write_s,
        config.faults.timeout_s,
        config.faults.retries,
        config.duration_s,
        config.duration_s / BINS,
        *found.values(),
    )
    filled = dict(zip(found, arguments[-len(found) :], strict=True))
    back_again = np.empty_like(order)
    back_again[order] = np.arange(requests)
    arrived, start, end, served_by, renewals = (
        filled[name][back_again] for name in ("arrived", "start", "end", "served_by", "renewals")
    )
    done = end >= 0
    gflops = load.audio_s + audio_s * renewals
    stops = np.minimum(stop_until[:-1], config.duration_s) - np.minimum(
        stop_from[:-1], config.duration_s
    )
    began = stop_from[:-1] < config.duration_s
    renewed_offline = users * int(began.sum())
    if renewed_offline:  # nobody's request asked for these
        gflops = gflops + renewed_offline * audio_s / requests
    count = filled["count"]
    busy = mean_number(start[done], end[done], served_by[done], workers, config.duration_s)
    width = config.duration_s / BINS
    busy += filled["background_s"].reshape(workers, BINS) / width
    waits = done & (start > arrived)
    return RunResult(
        requests=requests,
        failed=int(count[kernel.FAILED]),
        sent_s=load.sent_s,
        latency_s=np.where(done, end + back_s - load.sent_s, np.nan),
        flops=gflops * (config.worker.gflops_per_second * 1e9) * (done | (renewals > 0)),
        backward_bounces=int(count[kernel.BACKWARD]),
        forward_bounces=int(count[kernel.FORWARD]),
        cross_version_scorings=0,  # a worker looks at the profile's version before it scores
        reenrolments_foreground=int(count[kernel.FOREGROUND]),
        reenrolments_background=int(count[kernel.BACKGROUND]) + renewed_offline,
        downtime_s=float(stops.sum()),
        consistent_after_s=_since(consistent, config.rollout.start_s),
        worker_requests=np.bincount(served_by[done], minlength=workers).astype(np.int64),
        utilisation=busy / max(concurrency, 1),
        queue_length=mean_number(
            arrived[waits], start[waits], served_by[waits], workers, config.duration_s
        ),
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


def _stops(
    config: VersioningConfig, schedule: Schedule, offline: bool
) -> tuple[Floats, Floats, Ints]:
    """Return when the service is stopped, and its version after; the last stop never comes."""
    rollout = config.rollout
    begins = [(rollout.start_s, schedule.newest)]
    if rollout.second_after_s is not None or rollout.rollback_after_s is not None:
        begins = [(rollout.start_s, 2)]
        if rollout.second_after_s is not None:
            begins.append((rollout.start_s + rollout.second_after_s, 3))
        if rollout.rollback_after_s is not None:
            back = rollout.start_s + rollout.rollback_after_s
            begins = [(at, version) for at, version in begins if at < back] + [(back, OLD)]
    servers = config.workers * (config.worker.concurrency or config.users)
    rounds = -(-config.users // servers)
    each_s = config.enrolment.audio_s * config.worker.real_time_factor + config.database.write_s
    length = rollout.offline_update_s + rounds * each_s
    starts, ends = [], []
    for at, _ in begins:
        starts.append(max(at, ends[-1]) if ends else at)
        ends.append(starts[-1] + length)
    versions = [version for _, version in begins]
    if not offline:
        starts, ends, versions = [], [], []
    return np.array([*starts, np.inf]), np.array([*ends, np.inf]), np.array([*versions, OLD])


def _since(consistent: float, start_s: float) -> float | None:
    return None if consistent < 0 else max(consistent - start_s, 0.0)
