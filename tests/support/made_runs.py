"""Results of simulated runs, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulations.versioning.results import METRICS, Json
from simulations.versioning.run import BINS, RunResult
from simulations.versioning.statistics import summarise


def made_run(**changes: Any) -> RunResult:
    """Four requests, one of them failed, by two workers; `changes` replace fields."""
    fields: dict[str, Any] = {
        "requests": 4,
        "failed": 1,
        "sent_s": np.array([0.0, 10.0, 20.0, 30.0]),
        "latency_s": np.array([1.0, 2.0, np.nan, 3.0]),
        "flops": np.array([2e9, 2e9, 0.0, 8e9]),
        "backward_bounces": 1,
        "forward_bounces": 2,
        "cross_version_scorings": 0,
        "reenrolments_foreground": 3,
        "reenrolments_background": 4,
        "downtime_s": 0.0,
        "consistent_after_s": 25.0,
        "worker_requests": np.array([2, 1]),
        "utilisation": np.full((2, BINS), 0.25),
        "queue_length": np.zeros((2, BINS)),
    }
    return RunResult(**(fields | changes))


def made_strategy(runs: int = 40, **metrics: float | Sequence[float | None]) -> Json:
    """One strategy of `results.json`: a good one, except for `metrics` (a value, or one a run)."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.001, runs)
    means: dict[str, Any] = dict.fromkeys((metric.name for metric in METRICS), 0.0)
    means |= {"latency_mean_s": 0.8, "latency_p99_s": 1.0, "latency_max_s": 1.2}
    means |= {"gflops_per_request": 2.1, "utilisation_peak": 0.3} | metrics
    return {name: vars(summarise(_by_run(name, value, noise))) for name, value in means.items()}


def _by_run(name: str, value: Any, noise: np.ndarray) -> list[float | None]:
    if isinstance(value, Sequence):
        return list(value)
    spread = noise if name.startswith("latency") else 0 * noise
    return [float(value + each) for each in spread]
