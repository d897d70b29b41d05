"""The recommendation follows its rules, in their order, and nothing but the numbers."""

from __future__ import annotations

import pytest
from made_runs import made_strategy

from simulations.versioning.recommendation import recommend

GOOD = made_strategy()


def test_fast_and_wrong_is_out() -> None:
    found = recommend(
        {"wrong": made_strategy(latency_p99_s=0.1, cross_version_scorings=4.5), "right": GOOD},
        queues=True,
    )
    assert found.strategy == "right"
    assert "4.5 voices a run" in found.excluded["wrong"]
    assert "Left out: wrong scores" in found.text


def test_down_or_failing_is_out() -> None:
    found = recommend(
        {
            "down": made_strategy(latency_p99_s=0.1, downtime_s=60.0),
            "failing": made_strategy(latency_p99_s=0.1, failed_rate=0.02),
            "up": GOOD,
        },
        queues=True,
    )
    assert found.strategy == "up"
    assert found.excluded == {
        "down": "is down for 60 s",
        "failing": "fails 2.000 % of the requests",
    }


def test_more_failures_that_one_run_alone_had_put_nobody_out() -> None:
    unlucky = [0.0] * 39 + [0.2]  # half a per cent in the mean, which may be chance
    found = recommend(
        {"a": made_strategy(failed_rate=unlucky, latency_p99_s=0.9), "b": GOOD}, queues=True
    )
    assert (found.strategy, found.excluded) == ("a", {})


def test_failures_that_all_share_put_nobody_out() -> None:
    unclear = [0.01, 0.03] * 20
    found = recommend(
        {
            "a": made_strategy(failed_rate=unclear, latency_p99_s=0.9),
            "b": made_strategy(failed_rate=list(reversed(unclear))),
        },
        queues=True,
    )
    assert (found.strategy, found.excluded) == ("a", {})
    assert "not without fault: 2.000 % failed requests" in found.text


@pytest.mark.parametrize(("rate", "kept"), [(0.011, False), (0.0099, True)])
def test_more_than_one_bounce_in_a_hundred_is_out(rate: float, kept: bool) -> None:
    quick = made_strategy(latency_p99_s=0.5, backward_bounce_rate=rate)
    found = recommend({"quick": quick, "steady": GOOD}, queues=True)
    assert (found.strategy == "quick") is kept


def test_the_tail_decides_before_the_mean() -> None:
    found = recommend(
        {
            "queue": made_strategy(latency_p99_s=40.0, latency_mean_s=0.7),
            "even": made_strategy(latency_mean_s=0.9),
        },
        queues=True,
    )
    assert found.strategy == "even"
    assert "The last to fall behind was queue, by its p99 latency of 40.000 s" in found.text
    assert "3900 % more, and higher in 40 of 40 runs" in found.text


@pytest.mark.parametrize("metric", ["latency_max_s", "latency_mean_s", "gflops_per_request"])
def test_each_metric_of_the_race_decides_when_those_before_are_level(metric: str) -> None:
    worse = made_strategy(**{metric: 5.0})
    found = recommend({"worse": worse, "better": GOOD}, queues=True)
    assert (found.strategy, found.level) == ("better", ())


def test_within_two_per_cent_is_level_and_said_so() -> None:
    found = recommend({"a": GOOD, "b": made_strategy(latency_mean_s=0.81)}, queues=True)
    assert (found.strategy, found.level) == ("a", ("b",))
    assert "b cannot be told from it" in found.text


def test_a_difference_that_runs_do_not_agree_on_is_level() -> None:
    lucky = [1.0] * 39 + [30.0]
    found = recommend({"a": GOOD, "b": made_strategy(latency_max_s=lucky)}, queues=True)
    assert found.level == ("b",)


def test_when_a_rule_would_leave_nobody_the_least_bad_goes_on() -> None:
    found = recommend(
        {
            "bad": made_strategy(cross_version_scorings=10.0),
            "worse": made_strategy(cross_version_scorings=20.0),
        },
        queues=True,
    )
    assert (found.strategy, list(found.excluded)) == ("bad", ["worse"])
    assert "not without fault: 10.00 cross-version scorings" in found.text


def test_when_all_are_equally_bad_the_race_goes_on_between_all() -> None:
    found = recommend(
        {
            "slow": made_strategy(backward_bounce_rate=0.13, latency_p99_s=2.0),
            "fast": made_strategy(backward_bounce_rate=0.13),
        },
        queues=True,
    )
    assert (found.strategy, found.excluded) == ("fast", {})


def test_the_order_of_the_strategies_does_not_matter() -> None:
    three = {"a": GOOD, "b": made_strategy(latency_p99_s=2.0), "c": made_strategy(downtime_s=9.0)}
    backwards = dict(reversed(three.items()))
    assert recommend(three, queues=True).strategy == recommend(backwards, queues=True).strategy


def test_it_says_what_the_numbers_do_not_show() -> None:
    busy = made_strategy(utilisation_peak=0.93)
    assert "its busiest worker is 93 % busy" in recommend({"a": busy}, queues=True).text
    assert "Nobody queues" in recommend({"a": GOOD}, queues=False).text
    assert "first impression" in recommend({"a": made_strategy(runs=5)}, queues=True).text
    assert "first impression" not in recommend({"a": GOOD}, queues=True).text


def test_without_an_answered_request_there_is_no_recommendation() -> None:
    none = made_strategy(latency_mean_s=[None] * 40)
    found = recommend({"a": none}, queues=True)
    assert found.strategy is None
    assert "No recommendation" in found.text
