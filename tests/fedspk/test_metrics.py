"""Metrics: equal to brute force, and with the symmetries that error rates have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspk.errors import FedspkError
from fedspk.metrics import bootstrap_eer, det_curve, equal_error_rate, min_dcf

# Few distinct values, so that ties within and across classes are common.
scores = st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=25)


def _brute_force_rates(
    target: Sequence[float], nontarget: Sequence[float]
) -> list[tuple[float, float]]:
    thresholds = [*sorted({*target, *nontarget}), float("inf")]
    return [
        (
            sum(score >= threshold for score in nontarget) / len(nontarget),
            sum(score < threshold for score in target) / len(target),
        )
        for threshold in thresholds
    ]


def _brute_force_eer(target: Sequence[float], nontarget: Sequence[float]) -> float:
    rates = _brute_force_rates(target, nontarget)
    for (fa0, miss0), (fa1, miss1) in pairwise(rates):
        if miss0 < fa0 and miss1 >= fa1:
            weight = (fa0 - miss0) / ((fa0 - miss0) + (miss1 - fa1))
            return miss0 + weight * (miss1 - miss0)
    raise AssertionError("the curves always cross")


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_eer_equals_brute_force(target: list[float], nontarget: list[float]) -> None:
    expected = _brute_force_eer(target, nontarget)
    assert equal_error_rate(target, nontarget).value == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_min_dcf_equals_brute_force(target: list[float], nontarget: list[float]) -> None:
    costs = [
        10 * 0.05 * miss + 0.95 * false_alarm
        for false_alarm, miss in _brute_force_rates(target, nontarget)
    ]
    found = min_dcf(target, nontarget, p_target=0.05, c_miss=10.0)
    assert found == pytest.approx(min(costs) / 0.5, abs=1e-12)
    assert found <= 1.0 + 1e-12


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_eer_is_unchanged_by_increasing_maps(target: list[float], nontarget: list[float]) -> None:
    def stretched(values: list[float]) -> np.ndarray:
        return np.exp(np.array(values) / 3) + 7

    expected = equal_error_rate(target, nontarget).value
    assert equal_error_rate(stretched(target), stretched(nontarget)).value == expected


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_eer_is_symmetric_under_swapping_the_classes(
    target: list[float], nontarget: list[float]
) -> None:
    swapped = equal_error_rate([-s for s in nontarget], [-s for s in target]).value
    assert equal_error_rate(target, nontarget).value == pytest.approx(swapped, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_negating_the_scores_gives_the_complement(
    target: list[float], nontarget: list[float]
) -> None:
    negated = equal_error_rate([-s for s in target], [-s for s in nontarget]).value
    assert equal_error_rate(target, nontarget).value == pytest.approx(1 - negated, abs=1e-12)


def test_eer_of_known_cases() -> None:
    assert equal_error_rate([0.8, 0.9], [0.1, 0.2]).value == 0
    assert equal_error_rate([0.1], [0.9]).value == 1
    assert equal_error_rate([0.5, 0.5], [0.5, 0.5]).value == 0.5


def test_threshold_lies_in_the_middle_of_the_gap_between_classes() -> None:
    assert equal_error_rate([0.8, 0.9], [0.1, 0.2]).threshold == pytest.approx(0.5)


def test_threshold_gives_the_rates_it_promises() -> None:
    generator = np.random.default_rng(0)
    target, nontarget = generator.normal(2, 1, 500), generator.normal(0, 1, 5000)
    found = equal_error_rate(target, nontarget)
    assert (target < found.threshold).mean() == pytest.approx(found.value, abs=0.005)
    assert (nontarget >= found.threshold).mean() == pytest.approx(found.value, abs=0.005)
    assert found.value == pytest.approx(0.1587, abs=0.02)  # normal curve beyond one deviation


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_det_curve_runs_monotonously_from_accept_all_to_reject_all(
    target: list[float], nontarget: list[float]
) -> None:
    curve = det_curve(target, nontarget)
    assert (curve.false_alarm[0], curve.miss[0]) == (1, 0)
    assert (curve.false_alarm[-1], curve.miss[-1]) == (0, 1)
    assert (np.diff(curve.false_alarm) <= 0).all()
    assert (np.diff(curve.miss) >= 0).all()
    rates = _brute_force_rates(target, nontarget)
    np.testing.assert_allclose(np.column_stack([curve.false_alarm, curve.miss]), rates, atol=1e-12)


def test_bootstrap_agrees_with_redrawing_trial_by_trial() -> None:
    generator = np.random.default_rng(0)
    target, nontarget = generator.normal(2, 1, 40).round(1), generator.normal(0, 1, 300).round(1)
    values = [
        equal_error_rate(generator.choice(target, 40), generator.choice(nontarget, 300)).value
        for _ in range(3000)
    ]
    found = bootstrap_eer(target, nontarget, seed=1, samples=20_000)
    np.testing.assert_allclose(found, np.quantile(values, [0.025, 0.975]), atol=0.012)


@settings(max_examples=30, deadline=None)
@given(scores, scores)
def test_bootstrap_interval_is_ordered_and_repeats_by_seed(
    target: list[float], nontarget: list[float]
) -> None:
    low, high = bootstrap_eer(target, nontarget, seed=4, samples=50)
    assert 0 <= low <= high <= 1
    assert (low, high) == bootstrap_eer(target, nontarget, seed=4, samples=50)


@pytest.mark.parametrize(
    ("target", "nontarget"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])]
)
def test_missing_or_broken_scores_are_a_clear_error(
    target: list[float], nontarget: list[float]
) -> None:
    with pytest.raises(FedspkError, match="scores"):
        equal_error_rate(target, nontarget)


def test_impossible_prior_and_confidence_are_refused() -> None:
    with pytest.raises(FedspkError, match="prior"):
        min_dcf([1.0], [0.0], p_target=0.0)
    with pytest.raises(FedspkError, match="confidence"):
        bootstrap_eer([1.0], [0.0], seed=1, confidence=1.0)
