"""Significance: signs and counts by hand, and a plain answer where a test is undefined."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedspk.errors import FedspkError
from fedspk.significance import TestResult, compare

rates = st.floats(0, 100, allow_nan=False)


def _tests(a: list[float], b: list[float]) -> dict[str, TestResult]:
    return {result.test: result for result in compare("a", a, "b", b).tests}


def test_improvement_effect_size_and_counts() -> None:
    found = compare("a", [6.0, 5.0, 4.0, 1.0], "b", [4.0, 4.0, 4.0, 2.0])
    difference = np.array([2.0, 1.0, 0.0, -1.0])
    assert found.relative_improvement == pytest.approx(2 / 16)
    assert found.effect_size == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert (found.devices, found.devices_improved, found.devices_equal) == (4, 2, 1)


def test_paired_t_equals_its_definition() -> None:
    a, b = [6.0, 5.0, 4.0, 1.5], [4.0, 4.5, 3.0, 2.0]
    difference = np.subtract(a, b)
    statistic = difference.mean() / (difference.std(ddof=1) / 2)
    assert _tests(a, b)["paired t"].statistic == pytest.approx(statistic)


def test_a_clear_improvement_is_significant_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(10, 2, 25)
    better = list(a - generator.normal(1, 0.5, 25))
    same = list(a + generator.normal(0, 0.5, 25) - 0.0)
    for test in ("paired t", "Wilcoxon"):
        p_better, p_same = (_tests(list(a), b)[test].p_value for b in (better, same))
        assert p_better is not None
        assert p_better < 1e-4
        assert p_same is not None
        assert p_same > 0.05


def test_equal_arms_have_p_one() -> None:
    for result in _tests([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).values():
        assert result.p_value == pytest.approx(1.0)


def test_one_device_or_a_constant_difference_leaves_the_t_test_undefined() -> None:
    assert all(result.p_value is None and result.note for result in _tests([1.0], [2.0]).values())
    found = compare("a", [0.1, 0.2, 0.3], "b", [0.0, 0.1, 0.2])
    assert found.tests[0].p_value is None
    assert "same amount" in found.tests[0].note
    assert found.effect_size is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(rates, rates), min_size=1, max_size=8))
@example([(5e-324, 100.0)])
def test_rows_are_valid_json_whatever_the_values(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    rows = compare("a", a, "b", b).to_rows()
    json.dumps(rows, allow_nan=False)
    assert [row["test"] for row in rows] == ["paired t", "Welch t", "Wilcoxon"]
    for row in rows:
        assert row["p_value"] is None or 0 <= row["p_value"] <= 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(rates, rates), min_size=2, max_size=8))
def test_swapping_the_arms_keeps_p_values(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    for there, back in zip(
        compare("a", a, "b", b).tests, compare("b", b, "a", a).tests, strict=True
    ):
        assert (there.p_value is None) == (back.p_value is None)
        if there.p_value is not None:
            assert there.p_value == pytest.approx(back.p_value)


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([float("nan"), 1.0], [1.0, 2.0])]
)
def test_unpaired_or_broken_values_are_a_clear_error(a: list[float], b: list[float]) -> None:
    with pytest.raises(FedspkError):
        compare("a", a, "b", b)
