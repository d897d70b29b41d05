"""When each worker gets which version, when it crashes, and what the frontend knows of it.

Versions are thresholds on a worker's update times: nothing needs an event to be at a version. A
run begins with version 1 (and 0 where workers serve two), the rollout brings 2, a second one 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedspk.seeds import numpy_generator
from simulations.versioning.config import Rollout, VersioningConfig
from simulations.versioning.workload import Floats, Ints

OLD, NEW, SECOND = 1, 2, 3


@dataclass(frozen=True)
class Schedule:
    """The versions of all workers over time.

    at, to: change k of worker w happens at at[w, k], to version to[w, k], ascending in k; changes
        that never come are at infinity (workers, changes).
    newest: the version that every profile should have in the end.
    """

    at: Floats
    to: Ints
    newest: int


def draw_schedule(config: VersioningConfig, run: int, *, groups: int = 1) -> Schedule:
    """Draw the rollout; with groups (consecutive workers), the first has the earliest updates."""
    rollout = config.rollout
    rng = numpy_generator(config.seed, "versioning", "rollout", run)
    begins = [rollout.start_s]
    if rollout.second_after_s is not None:
        begins.append(rollout.start_s + rollout.second_after_s)
    columns = []
    for begin in begins:
        updates = begin + _draw_updates(rollout, config.workers, rng)
        columns.append(_by_group(updates, groups) if groups > 1 else updates)
    at = np.stack(columns, axis=1)
    if len(begins) > 1:  # a worker that gets version 3 first never gets version 2
        at[at[:, 0] >= at[:, 1], 0] = np.inf
    to = np.tile(np.arange(NEW, NEW + len(begins), dtype=np.int64), (config.workers, 1))
    newest = NEW + len(begins) - 1
    if rollout.rollback_after_s is not None:
        back = rollout.start_s + rollout.rollback_after_s
        at = np.where(at < back, at, np.inf)
        updated = np.isfinite(at).any(axis=1)
        at = np.concatenate([at, np.where(updated, back, np.inf)[:, None]], axis=1)
        to = np.concatenate([to, np.full((config.workers, 1), OLD)], axis=1)
        newest = OLD
    return Schedule(np.ascontiguousarray(at), np.ascontiguousarray(to), newest)


def _draw_updates(rollout: Rollout, workers: int, rng: np.random.Generator) -> Floats:
    """Draw when each worker is updated (workers,), since the rollout began."""
    if rollout.kind == "exponential":
        return rng.exponential(rollout.mean_s, workers)
    place = rng.permutation(workers).astype(np.float64)
    match rollout.kind:
        case "rolling":
            return place * rollout.step_s
        case "canary":
            canaries = max(1, math.ceil(rollout.canary_share * workers))
            later = rollout.canary_hold_s + (place - canaries) * rollout.step_s
            return np.where(place < canaries, 0.0, later)
        case "blue-green":
            return np.zeros(workers)


def group_bounds(workers: int, groups: int) -> Ints:
    """Return where each group of consecutive workers begins, and their number (groups + 1,)."""
    return (np.arange(groups + 1) * workers) // groups


def _by_group(updates: Floats, groups: int) -> Floats:
    """Return the same update times, the earliest in the first group, in its own order inside."""
    ascending = np.sort(updates)
    ranks = np.argsort(np.argsort(updates, kind="stable"), kind="stable")
    result = np.empty_like(updates)
    bounds = group_bounds(len(updates), groups)
    for first, last in pairwise(bounds):
        inside = np.argsort(ranks[first:last], kind="stable")
        result[first:last][inside] = ascending[first:last]
    return result


@dataclass(frozen=True)
class Polls:
    """What the frontend learns of the workers' versions, in order of time, each (answers,)."""

    at: Floats
    worker: Ints
    version: Ints


def poll_answers(schedule: Schedule, interval: float, latency: float) -> Polls:
    """Return the answers to polls that differ from the poll before.

    interval: seconds between two polls, the first at `interval`. latency: seconds from frontend
    to worker and as many back. Polls that tell nothing new cost nothing.
    """
    poll = np.ceil(np.maximum(schedule.at - latency, 0.0) / interval)
    poll = np.maximum(poll, 1.0)
    worker, change = np.nonzero(np.isfinite(poll))
    at = poll[worker, change] * interval + 2 * latency
    order = np.lexsort((change, at))
    worker, change = worker[order], change[order]
    return Polls(at[order], worker.astype(np.int64), schedule.to[worker, change])


NO_POLLS = Polls(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Stops:
    """When the service is stopped to be renewed, and the version after; each (stops + 1,).

    The last stop never comes: it is at infinity.
    """

    begin: Floats
    end: Floats
    version: Ints


NO_STOPS = Stops(np.array([np.inf]), np.array([np.inf]), np.array([OLD]))


def draw_stops(config: VersioningConfig) -> Stops:
    """Return the stops of the strategy `offline`: one for each version, and for the way back.

    A stop lasts until the workers are updated and have re-enrolled all users between them.
    """
    rollout = config.rollout
    asked = [(rollout.start_s, NEW)]
    if rollout.second_after_s is not None:
        asked.append((rollout.start_s + rollout.second_after_s, SECOND))
    if rollout.rollback_after_s is not None:
        back = rollout.start_s + rollout.rollback_after_s
        asked = [(at, version) for at, version in asked if at < back] + [(back, OLD)]
    servers = config.workers * (config.worker.concurrency or config.users)
    turns = -(-config.users // servers)
    each_s = config.enrolment.audio_s * config.worker.real_time_factor + config.database.write_s
    length = rollout.offline_update_s + turns * each_s
    begin: list[float] = []
    for at, _ in asked:
        begin.append(max(at, begin[-1] + length) if begin else at)
    return Stops(
        np.array([*begin, np.inf]),
        np.array([*begin, np.inf]) + length,
        np.array([*(version for _, version in asked), OLD]),
    )


def draw_crashes(config: VersioningConfig, run: int) -> Floats:
    """Draw when each worker is down, from and until (workers, crashes, 2); the last never is."""
    faults = config.faults
    none = np.full((config.workers, 1, 2), np.inf)
    if not faults.crashes_per_hour:
        return none
    rng = numpy_generator(config.seed, "versioning", "crashes", run)
    mean = 3600.0 / faults.crashes_per_hour
    horizon = 2 * config.duration_s  # queues may outlive the run
    most = int(rng.poisson(horizon / mean, config.workers).max()) + 1
    begin = np.cumsum(rng.exponential(mean, (config.workers, most)) + faults.repair_s, axis=1)
    begin -= faults.repair_s
    windows = np.stack([begin, begin + faults.repair_s], axis=2)
    return np.concatenate([windows, none], axis=1)
