"""From single runs to `results.json`: metrics, their statistics, comparisons in pairs."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk import __version__
from simulations.versioning.statistics import paired_difference, summarise

if TYPE_CHECKING:
    from simulations.versioning.result import RunResult

Json: TypeAlias = dict[str, Any]
FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

# Latencies are counted in bins of equal ratio, 0.5 % wide: the distribution over all requests of
# all runs then takes a few kilobytes, and adding up counts gives the same in any order.
LATENCY_EDGES: FloatArray = np.geomspace(1e-3, 1e6, 4096)
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Metric:
    """How a metric of `results.json` is named, and scaled when people read it.

    name: the key under `strategies.<name>`.
    label, unit, scale, digits: `scale * value`, printed with so many digits, in this unit.
    """

    name: str
    label: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3

    def show(self, value: float | None, unit: bool = False) -> str:
        """Return the value as people read it, `-` for none."""
        if value is None:
            return "-"
        text = f"{self.scale * value:.{self.digits}f}"
        return f"{text} {self.unit}" if unit and self.unit else text


METRICS: tuple[Metric, ...] = (
    Metric("backward_bounce_rate", "backward bounces", "%", 100, 3),
    Metric("forward_bounce_rate", "forward bounces", "%", 100, 3),
    Metric("latency_mean_s", "mean latency", "s", 1, 4),
    Metric("latency_p50_s", "median latency", "s"),
    Metric("latency_p95_s", "p95 latency", "s"),
    Metric("latency_p99_s", "p99 latency", "s"),
    Metric("latency_max_s", "maximal latency", "s"),
    Metric("gflops_per_request", "computing a request", "Gflops", 1, 4),
    Metric("gflops_max", "most computing for a request", "Gflops", 1, 2),
    Metric("reenrolments", "re-enrolments", "", 1, 2),
    Metric("reenrolments_foreground", "re-enrolments in the foreground", "", 1, 2),
    Metric("reenrolments_background", "re-enrolments in the background", "", 1, 2),
    Metric("cross_version_scorings", "cross-version scorings", "", 1, 2),
    Metric("failed_rate", "failed requests", "%", 100, 3),
    Metric("downtime_s", "downtime", "s", 1, 1),
    Metric("consistent_after_s", "time to consistency", "s", 1, 0),
    Metric("consistent", "runs that got consistent", "%", 100, 0),
    Metric("worker_share", "busiest worker's share of requests", "%", 100, 1),
    Metric("utilisation_mean", "mean utilisation", "%", 100, 1),
    Metric("utilisation_peak", "peak utilisation of a worker", "%", 100, 1),
    Metric("queue_peak", "longest mean queue", "requests", 1, 2),
    Metric("requests", "requests", "", 1, 0),
)
BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}

# The metrics that strategies are compared by, in pairs.
COMPARED = (
    "backward_bounce_rate",
    "latency_mean_s",
    "latency_p99_s",
    "latency_max_s",
    "gflops_per_request",
    "failed_rate",
)


@dataclass(frozen=True)
class FirstRun:
    """What the page draws of run 0 of one strategy.

    latency_s, gflops: minimum, quartiles and maximum over the run's requests; None: no request.
    utilisation, queue_length: (workers, bins) over the run.
    """

    latency_s: tuple[float, ...] | None
    gflops: tuple[float, ...] | None
    utilisation: FloatArray
    queue_length: FloatArray


@dataclass
class Batch:
    """Some runs of one strategy, reduced: a metric's values by run, and sums over the runs.

    latencies: requests in each bin of `LATENCY_EDGES`.
    busiest, longest_queue: (bins,) over time, of the worker that has most at each time, summed
        over the runs.
    """

    metrics: list[dict[str, float | None]]
    latencies: IntArray
    busiest: FloatArray
    longest_queue: FloatArray
    first: FirstRun | None = None

    def add(self, other: Batch) -> None:
        """Append the runs of `other`, which follow this batch's."""
        self.metrics += other.metrics
        self.latencies = self.latencies + other.latencies
        self.busiest = self.busiest + other.busiest
        self.longest_queue = self.longest_queue + other.longest_queue


def reduce_run(result: RunResult, *, first: bool) -> Batch:
    """Return one run as a batch; `first` keeps what the page draws of it."""
    answered = result.latency_s[~np.isnan(result.latency_s)]
    bins = np.searchsorted(LATENCY_EDGES, answered, side="right")
    return Batch(
        metrics=[run_metrics(result)],
        latencies=np.bincount(bins, minlength=len(LATENCY_EDGES) + 1),
        busiest=result.utilisation.max(axis=0),
        longest_queue=result.queue_length.max(axis=0),
        first=_first_run(result, answered) if first else None,
    )


def run_metrics(result: RunResult) -> dict[str, float | None]:
    """Return every metric of one run, rates as fractions; None where there is nothing to measure.

    `backward_bounce_rate` is Eq. 5, the latencies Eq. 1-3 and `gflops_per_request` Eq. 4 of Wang
    & Lopez Moreno, "Version control of speaker recognition systems".
    """
    answered = result.latency_s[~np.isnan(result.latency_s)]
    requests = result.requests
    served = int(result.worker_requests.sum())
    foreground, background = result.reenrolments_foreground, result.reenrolments_background
    median, p95, p99 = _quantiles(answered, (0.5, 0.95, 0.99)) or (None, None, None)
    return {
        "backward_bounce_rate": _ratio(result.backward_bounces, requests),
        "forward_bounce_rate": _ratio(result.forward_bounces, requests),
        "latency_mean_s": _over(np.mean, answered),
        "latency_p50_s": median,
        "latency_p95_s": p95,
        "latency_p99_s": p99,
        "latency_max_s": _over(np.max, answered),
        "gflops_per_request": _over(np.mean, result.flops / 1e9),
        "gflops_max": _over(np.max, result.flops / 1e9),
        "reenrolments": float(foreground + background),
        "reenrolments_foreground": float(foreground),
        "reenrolments_background": float(background),
        "cross_version_scorings": float(result.cross_version_scorings),
        "failed_rate": _ratio(result.failed, requests),
        "downtime_s": float(result.downtime_s),
        "consistent_after_s": result.consistent_after_s,
        "consistent": float(result.consistent_after_s is not None),
        "worker_share": _ratio(int(result.worker_requests.max(initial=0)), served),
        "utilisation_mean": _over(np.mean, result.utilisation.ravel()),
        "utilisation_peak": _over(np.max, result.utilisation.ravel()),
        "queue_peak": _over(np.max, result.queue_length.ravel()),
        "requests": float(requests),
    }


def strategy_results(batches: Mapping[str, Batch]) -> Json:
    """Return `strategies` of `results.json`: name, metric, statistics over runs."""
    return {
        name: {
            metric.name: asdict(summarise([run[metric.name] for run in batch.metrics]))
            for metric in METRICS
        }
        for name, batch in batches.items()
    }


def comparisons(strategies: Mapping[str, Json]) -> list[Json]:
    """Return the paired difference b - a of each pair of strategies and compared metric."""
    rows = []
    for metric in COMPARED:
        for a, b in combinations(strategies, 2):
            difference = paired_difference(
                strategies[a][metric]["per_run"], strategies[b][metric]["per_run"]
            )
            if difference is not None:
                rows.append({"metric": metric, "a": a, "b": b} | asdict(difference))
    return rows


def latency_curve(batch: Batch) -> tuple[FloatArray, FloatArray]:
    """Return the latency CDF over all runs' requests: seconds, and the share answered by then.

    A bin counts at its upper edge, so no latency is shown as shorter than it was.
    """
    counts = batch.latencies
    used = np.flatnonzero(counts)
    edges = np.append(LATENCY_EDGES, math.inf)
    total = max(1, int(counts.sum()))
    return edges[used], np.cumsum(counts)[used] / total


def versions() -> dict[str, str]:
    """Return what made the numbers."""
    return {"fedspk": __version__, "python": platform.python_version(), "numpy": np.__version__}


def _first_run(result: RunResult, answered: FloatArray) -> FirstRun:
    return FirstRun(
        latency_s=_quantiles(answered, _QUANTILES),
        gflops=_quantiles(result.flops / 1e9, _QUANTILES),
        utilisation=result.utilisation,
        queue_length=result.queue_length,
    )


def _quantiles(values: FloatArray, shares: Sequence[float]) -> tuple[float, ...] | None:
    return tuple(float(q) for q in np.quantile(values, shares)) if values.size else None


def _over(function: Callable[[FloatArray], Any], values: FloatArray) -> float | None:
    return float(function(values)) if values.size else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
