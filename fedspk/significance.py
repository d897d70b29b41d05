"""Is one arm better than another over the same devices? Paired tests, effect size, counts.

Values are error rates, lower is better; a positive improvement means that `b` is better than `a`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedspk.errors import FedspkError

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TestResult:
    """One two-sided test; where it is undefined, `p_value` is None and `note` says why."""

    __test__ = False  # not a pytest class

    test: str
    statistic: float | None
    p_value: float | None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Arm `b` against arm `a` over the same devices; every field is finite or None.

    relative_improvement: (mean_a - mean_b) / mean_a, a fraction; None when mean_a is 0, or
        so near it that the fraction is beyond all numbers.
    effect_size: Cohen's d_z, mean difference a - b over its standard deviation.
    devices_improved: devices whose value is lower under `b`; `devices_equal` are ties.
    """

    a: str
    b: str
    devices: int
    mean_a: float
    mean_b: float
    relative_improvement: float | None
    effect_size: float | None
    devices_improved: int
    devices_equal: int
    tests: tuple[TestResult, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one plain dictionary a test, with all the comparison's fields beside it."""
        shared = {name: value for name, value in vars(self).items() if name != "tests"}
        return [{**shared, **vars(test)} for test in self.tests]


def compare(a: str, a_values: Sequence[float], b: str, b_values: Sequence[float]) -> Comparison:
    """Compare arm `b` with arm `a`, whose values belong to the same devices in the same order.

    >>> compare("individual", [6.0, 5.0, 4.0], "federated", [5.0, 4.5, 3.9]).devices_improved
    3

    Raises:
        FedspkError: the lists are empty, differ in length, or hold something not finite.
    """
    before, after = np.asarray(a_values, np.float64), np.asarray(b_values, np.float64)
    if before.ndim != 1 or before.shape != after.shape or before.size == 0:
        raise FedspkError(
            f"{a} has {before.size} devices and {b} has {after.size}; "
            "a paired comparison needs the same devices in both, and at least one."
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise FedspkError(f"the values of {a} or {b} hold NaN or infinity.")
    difference = before - after
    mean_a, mean_b = float(before.mean()), float(after.mean())
    spread = 0.0 if _constant(difference) else float(difference.std(ddof=1))
    return Comparison(
        a=a,
        b=b,
        devices=len(before),
        mean_a=mean_a,
        mean_b=mean_b,
        relative_improvement=_ratio(mean_a - mean_b, mean_a),
        effect_size=_ratio(float(difference.mean()), spread),
        devices_improved=int((difference > 0).sum()),
        devices_equal=int((difference == 0).sum()),
        tests=(paired_t(before, after), welch_t(before, after), wilcoxon(before, after)),
    )


def paired_t(a: FloatArray, b: FloatArray) -> TestResult:
    """Return Student's paired t-test of two value lists (n,)."""
    degenerate = _degenerate("paired t", a - b)
    return degenerate or _result("paired t", lambda: stats.ttest_rel(a, b))


def welch_t(a: FloatArray, b: FloatArray) -> TestResult:
    """Return Welch's t-test of two value lists (n,), as if from different devices."""
    if min(len(a), len(b)) < 2:
        return _too_few("Welch t")
    if _constant(a) and _constant(b):
        return _without_spread("Welch t", equal=bool(a[0] == b[0]))
    return _result("Welch t", lambda: stats.ttest_ind(a, b, equal_var=False))


def wilcoxon(a: FloatArray, b: FloatArray) -> TestResult:
    """Return Wilcoxon's signed-rank test of two value lists (n,); equal pairs are left out."""
    difference = a - b
    if len(difference) < 2:
        return _too_few("Wilcoxon")
    if not difference.any():
        return _without_spread("Wilcoxon", equal=True)
    return _result("Wilcoxon", lambda: stats.wilcoxon(difference))


def _degenerate(test: str, difference: FloatArray) -> TestResult | None:
    if len(difference) < 2:
        return _too_few(test)
    if _constant(difference):
        return _without_spread(test, equal=bool(difference[0] == 0))
    return None


def _ratio(part: float, whole: float) -> float | None:
    ratio = part / whole if whole else math.inf
    return ratio if math.isfinite(ratio) else None


def _constant(values: FloatArray) -> bool:
    """Say whether the values are equal but for rounding."""
    return float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max())


def _too_few(test: str) -> TestResult:
    return TestResult(test, None, None, "needs at least two devices")


def _without_spread(test: str, *, equal: bool) -> TestResult:
    if equal:
        return TestResult(test, 0.0, 1.0, "no device differs")
    return TestResult(test, None, None, "every device differs by the same amount")


def _result(test: str, run: Callable[[], Any]) -> TestResult:
    with warnings.catch_warnings():  # scipy's, of nearly equal values: the note says it instead
        warnings.simplefilter("ignore", RuntimeWarning)
        outcome = run()
    statistic, p_value = float(outcome.statistic), float(outcome.pvalue)
    if not (math.isfinite(statistic) and math.isfinite(p_value)):
        return TestResult(test, None, None, "undefined for these values")
    return TestResult(test, statistic, p_value)
