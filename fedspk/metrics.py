"""How well scores tell the same speaker from others: EER with interval, minDCF, DET curve.

Scores are any real numbers, higher for the target; a trial is accepted when its score reaches the
threshold. All rates are fractions in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.seeds import numpy_generator

Scores: TypeAlias = npt.ArrayLike
FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EER:
    """Equal error rate, and the threshold whose two error rates are nearest to equal."""

    value: float
    threshold: float


@dataclass(frozen=True)
class DETCurve:
    """Operating points by rising threshold, from accept-all to reject-all; each array is (K,).

    The last threshold is +inf.
    """

    false_alarm: FloatArray
    miss: FloatArray
    thresholds: FloatArray


def det_curve(target: Scores, nontarget: Scores) -> DETCurve:
    """Return miss and false-alarm rates at every distinct score.

    Source: Martin et al., "The DET curve in assessment of detection task performance", 1997.

    Raises:
        FedspkError: a list of scores is empty or holds something not finite.
    """
    thresholds, target_counts, nontarget_counts = _counts_by_score(target, nontarget)
    false_alarm, miss = _rates(target_counts, nontarget_counts)
    return DETCurve(false_alarm, miss, np.append(thresholds, np.inf))


def equal_error_rate(target: Scores, nontarget: Scores) -> EER:
    """Return where the ROC polyline through all operating points crosses miss = false alarm.

    Tied scores make one slanted step, so the value needs no tie-breaking; it is unchanged by any
    increasing map of the scores and by swapping the classes with negated scores. The threshold is
    the middle of the gap between scores in which the rates are nearest to equal.

    >>> equal_error_rate([0.9, 0.8, 0.3], [0.1, 0.2, 0.4]).value
    0.3333333333333333

    Raises:
        FedspkError: a list of scores is empty or holds something not finite.
    """
    curve = det_curve(target, nontarget)
    value = float(_crossing(curve.false_alarm, curve.miss))
    nearest = int(np.argmin(np.abs(curve.false_alarm - curve.miss)))
    last = len(curve.thresholds) - 2
    below, above = max(0, nearest - 1), min(nearest, last)
    threshold = float(curve.thresholds[below] / 2 + curve.thresholds[above] / 2)
    return EER(value, threshold)


def bootstrap_eer(
    target: Scores,
    nontarget: Scores,
    *,
    seed: int,
    samples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the EER, trials redrawn within each class.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", section 13.3.

    Raises:
        FedspkError: as `equal_error_rate`, or the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1 or samples < 1:
        raise FedspkError(
            f"bootstrap needs a confidence in (0, 1) and samples >= 1, "
            f"got {confidence} and {samples}."
        )
    _, target_counts, nontarget_counts = _counts_by_score(target, nontarget)
    generator = numpy_generator("bootstrap", seed)
    values = _redrawn_crossings(target_counts, nontarget_counts, samples, generator)
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def min_dcf(
    target: Scores,
    nontarget: Scores,
    *,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_false_alarm: float = 1.0,
) -> float:
    """Return the least detection cost over all thresholds, divided by that of the best constant.

    Source: NIST speaker recognition evaluation plan 2016, equations (1) and (2): 1 means that the
    scores are no better than always accepting or always rejecting.

    Raises:
        FedspkError: as `equal_error_rate`, or the prior or a cost is out of range.
    """
    if not 0 < p_target < 1 or c_miss <= 0 or c_false_alarm <= 0:
        raise FedspkError("minDCF needs a prior between 0 and 1 and positive costs.")
    curve = det_curve(target, nontarget)
    miss_weight, false_alarm_weight = c_miss * p_target, c_false_alarm * (1 - p_target)
    costs = miss_weight * curve.miss + false_alarm_weight * curve.false_alarm
    return float(costs.min() / min(miss_weight, false_alarm_weight))


def _counts_by_score(target: Scores, nontarget: Scores) -> tuple[FloatArray, IntArray, IntArray]:
    """Return distinct scores (K,) in rising order and each class's trials at each of them."""
    target, nontarget = _checked(target, "target"), _checked(nontarget, "nontarget")
    thresholds, where = np.unique(np.concatenate([target, nontarget]), return_inverse=True)
    size = len(thresholds)
    target_counts = np.bincount(where[: len(target)], minlength=size)
    nontarget_counts = np.bincount(where[len(target) :], minlength=size)
    return thresholds, target_counts, nontarget_counts


def _checked(scores: Scores, kind: str) -> FloatArray:
    array = np.asarray(scores, dtype=np.float64).ravel()
    if array.size == 0:
        raise FedspkError(f"there are no {kind} scores; error rates need both kinds of trial.")
    if not np.isfinite(array).all():
        raise FedspkError(f"the {kind} scores hold NaN or infinity; check the model's outputs.")
    return array


def _rates(target_counts: IntArray, nontarget_counts: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return false-alarm and miss rates (K + 1,) of counts (K,)."""
    misses, rejections = _cumulative(target_counts), _cumulative(nontarget_counts)
    return 1.0 - rejections / rejections[-1], misses / misses[-1]


def _crossing(false_alarm: FloatArray, miss: FloatArray) -> FloatArray:
    """Return (...,) where the polylines (..., points) cross miss = false alarm."""
    gap = miss - false_alarm  # rises from -1 to 1
    after = np.argmax(gap >= 0, axis=-1)[..., np.newaxis]
    before = after - 1
    gap_before = np.take_along_axis(gap, before, -1)
    gap_after = np.take_along_axis(gap, after, -1)
    fraction = gap_before / (gap_before - gap_after)
    miss_before = np.take_along_axis(miss, before, -1)
    miss_after = np.take_along_axis(miss, after, -1)
    crossing: FloatArray = (miss_before + fraction * (miss_after - miss_before))[..., 0]
    return crossing


def _redrawn_crossings(
    target_counts: IntArray,
    nontarget_counts: IntArray,
    samples: int,
    generator: np.random.Generator,
) -> FloatArray:
    """Return the EERs (samples,) of trials redrawn with replacement within each class.

    Redrawn counts are multinomial, and the half of an interval's trials that falls below its
    middle is binomial given the whole: bisecting the operating points for the crossing draws only
    the counts on its way, log2(K) numbers a class and sample instead of one for every trial.
    """
    cumulative = [_cumulative(target_counts), _cumulative(nontarget_counts)]
    totals = [int(counts[-1]) for counts in cumulative]
    low = np.zeros(samples, np.int64)
    high = np.full(samples, len(target_counts), np.int64)
    below = [np.zeros(samples, np.int64) for _ in totals]  # redrawn trials rejected at `low`
    above = [np.full(samples, total, np.int64) for total in totals]  # and at `high`
    while (high - low > 1).any():
        middle = (low + high) // 2
        drawn = [
            start + generator.binomial(stop - start, _share(counts, low, middle, high))
            for counts, start, stop in zip(cumulative, below, above, strict=True)
        ]
        crossed = drawn[0] * totals[1] + drawn[1] * totals[0] >= totals[0] * totals[1]
        low, high = np.where(crossed, low, middle), np.where(crossed, middle, high)
        below = [np.where(crossed, old, new) for old, new in zip(below, drawn, strict=True)]
        above = [np.where(crossed, new, old) for old, new in zip(above, drawn, strict=True)]
    miss = np.stack([below[0], above[0]], axis=-1) / totals[0]
    false_alarm = 1.0 - np.stack([below[1], above[1]], axis=-1) / totals[1]
    return _crossing(false_alarm, miss)


def _share(counts: IntArray, low: IntArray, middle: IntArray, high: IntArray) -> FloatArray:
    """Return which part of the trials between `low` and `high` lies below `middle`, (samples,)."""
    width = counts[high] - counts[low]
    share: FloatArray = (counts[middle] - counts[low]) / np.maximum(width, 1)
    return share


def _cumulative(counts: IntArray) -> IntArray:
    """Return trials rejected at each operating point, (K + 1,) of counts (K,)."""
    return np.concatenate([[0], np.cumsum(counts)])
