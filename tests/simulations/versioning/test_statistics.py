"""Means, intervals and paired differences over runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from simulations.versioning.statistics import paired_difference, summarise

RNG = np.random.default_rng(5)
A = RNG.normal(10, 2, 30).tolist()
B = [value + shift for value, shift in zip(A, RNG.normal(0.3, 0.1, 30), strict=True)]


def test_the_interval_is_students() -> None:
    found = summarise(A)
    expected = stats.t.interval(0.95, 29, loc=np.mean(A), scale=stats.sem(A))
    assert found.ci95 == pytest.approx(expected)
    assert found.std == pytest.approx(np.std(A, ddof=1))


def test_the_interval_holds_the_true_mean_in_19_runs_of_20() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        low, high = summarise(rng.normal(3, 1, 8).tolist()).ci95 or (0, 0)
        held += low <= 3 <= high
    assert 0.935 < held / 2000 < 0.965


def test_one_run_has_a_mean_and_no_spread() -> None:
    found = summarise([4.0])
    assert (found.mean, found.std, found.ci95) == (4.0, None, None)


def test_a_run_without_a_value_leaves_no_mean_that_could_flatter() -> None:
    found = summarise([1.0, None, 3.0])
    assert (found.mean, found.ci95, found.per_run) == (None, None, (1.0, None, 3.0))


def test_what_runs_have_in_common_cancels_in_a_pair() -> None:
    found = paired_difference(A, B)
    assert found is not None and found.clear
    assert found.mean == pytest.approx(np.mean(B) - np.mean(A))
    assert found.p_value == pytest.approx(stats.ttest_rel(B, A).pvalue)
    assert found.ci95 is not None and found.ci95[1] - found.ci95[0] < 0.15
    assert stats.ttest_ind(A, B).pvalue > 0.1  # unpaired, the spread between runs hides it
    assert found.lower_in == sum(b < a for a, b in zip(A, B, strict=True))


def test_equal_strategies_differ_by_nothing_and_without_a_test() -> None:
    found = paired_difference(A, A)
    assert found is not None and not found.clear
    assert (found.mean, found.ci95, found.p_value) == (0.0, (0.0, 0.0), None)


def test_a_pair_counts_the_runs_that_both_have() -> None:
    found = paired_difference([1.0, None, 3.0], [2.0, 2.0, None])
    assert found is not None and (found.runs, found.mean, found.ci95) == (1, 1.0, None)
    assert paired_difference([None], [1.0]) is None
