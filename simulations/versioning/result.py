"""What happened in one run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RunResult:
    """What happened in one run.

    requests, failed: that were sent within the run, and those of them that got no answer.
    sent_s, latency_s, flops: of each request (requests,), in order of sending; latency NaN where
        failed; flops include the re-enrolment that the request set off.
    backward_bounces, forward_bounces: requests that met a worker of an older or a newer version
        than their profile, which they had no other version of (Eq. 5).
    cross_version_scorings: answers scored with a profile of another version than the worker's.
    reenrolments_foreground, reenrolments_background: those that a request waited for, and others.
    downtime_s: time in which the service takes no request.
    consistent_after_s: since the rollout began, until all profiles were of the newest version and
        stayed so; None where that did not come.
    worker_requests: answers that each worker scored (workers,).
    utilisation: share of its servers that each worker had busy, mean over each of 60 equal parts
        of the run (workers, 60); with infinite concurrency, mean jobs at a time.
    queue_length: mean number of jobs that waited (workers, 60).
    """

    requests: int
    failed: int
    sent_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    flops: NDArray[np.float64]
    backward_bounces: int
    forward_bounces: int
    cross_version_scorings: int
    reenrolments_foreground: int
    reenrolments_background: int
    downtime_s: float
    consistent_after_s: float | None
    worker_requests: NDArray[np.int64]
    utilisation: NDArray[np.float64]
    queue_length: NDArray[np.float64]
