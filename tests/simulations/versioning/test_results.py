"""From runs to metrics, statistics and comparisons."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_runs import made_run

from simulations.versioning.results import (
    METRICS,
    Batch,
    comparisons,
    latency_curve,
    reduce_run,
    run_metrics,
    strategy_results,
)

PINNED = (
    *("backward_bounce_rate", "latency_mean_s", "latency_max_s", "latency_p99_s"),
    *("gflops_per_request", "reenrolments", "cross_version_scorings", "worker_share"),
)


def batch(*latencies: float) -> Batch:
    whole = reduce_run(made_run(latency_s=np.array([latencies[0]] * 4)), first=True)
    for latency in latencies[1:]:
        whole.add(reduce_run(made_run(latency_s=np.array([latency] * 4)), first=False))
    return whole


def test_metrics_of_a_run() -> None:
    found = run_metrics(made_run())
    assert found["backward_bounce_rate"] == 1 / 4
    assert found["forward_bounce_rate"] == 2 / 4
    assert found["latency_mean_s"] == 2.0  # of the answered
    assert found["latency_p50_s"] == 2.0
    assert found["latency_max_s"] == 3.0
    assert found["gflops_per_request"] == 3.0
    assert found["gflops_max"] == 8.0
    assert found["reenrolments"] == 7.0
    assert found["failed_rate"] == 1 / 4
    assert found["worker_share"] == 2 / 3
    assert found["consistent_after_s"] == 25.0
    assert found["consistent"] == 1.0


def test_every_metric_is_measured_and_described_and_no_other() -> None:
    assert list(run_metrics(made_run())) == [metric.name for metric in METRICS]


def test_a_run_without_an_answer_has_no_latency() -> None:
    found = run_metrics(made_run(failed=4, latency_s=np.full(4, np.nan)))
    assert found["latency_mean_s"] is None and found["latency_p99_s"] is None
    assert found["failed_rate"] == 1.0


def test_a_run_without_requests_or_served_by_devices_alone_divides_by_nothing() -> None:
    none = np.array([])
    empty = made_run(requests=0, failed=0, sent_s=none, latency_s=none, flops=none)
    assert run_metrics(empty)["backward_bounce_rate"] is None
    alone = made_run(worker_requests=np.zeros(2, dtype=np.int64), consistent_after_s=None)
    assert run_metrics(alone)["worker_share"] is None
    assert run_metrics(alone)["consistent"] == 0.0


def test_results_have_the_pinned_names_and_are_plain_json() -> None:
    results = strategy_results({"SSO": batch(1.0, 2.0, 3.0)})
    for name in PINNED:
        assert set(results["SSO"][name]) == {"mean", "std", "ci95", "per_run"}
    assert results["SSO"]["latency_mean_s"]["mean"] == 2.0
    assert results["SSO"]["latency_mean_s"]["per_run"] == (1.0, 2.0, 3.0)
    json.dumps(results, allow_nan=False)


def test_strategies_are_compared_run_by_run() -> None:
    results = strategy_results({"a": batch(1.0, 2.0, 3.0), "b": batch(1.5, 2.5, 3.5)})
    row = next(row for row in comparisons(results) if row["metric"] == "latency_mean_s")
    assert (row["a"], row["b"], row["mean"], row["lower_in"], row["runs"]) == ("a", "b", 0.5, 0, 3)
    assert row["ci95"] == pytest.approx((0.5, 0.5))


def test_the_latency_distribution_counts_every_answer_within_half_a_per_cent() -> None:
    seconds, share = latency_curve(batch(1.0, 2.0, 4.0, 8.0))
    assert share.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert seconds == pytest.approx([1.0, 2.0, 4.0, 8.0], rel=0.006)
    assert np.all(seconds >= [1.0, 2.0, 4.0, 8.0])


def test_latencies_beyond_the_bins_are_counted_too() -> None:
    _, share = latency_curve(batch(1e-9, 1e9))
    assert share.tolist() == [0.5, 1.0]
