"""Means over runs with their confidence, and paired differences between two strategies.

All strategies meet the same arrivals, users and update times in the same run (common random
numbers), so a difference is taken run by run: what the runs have in common cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """One metric over runs: mean, standard deviation between runs, 95 % interval of the mean.

    `mean` is None as soon as one run has no value: a mean over the others would flatter.
    `std` and `ci95` are None with fewer than two runs.
    """

    mean: float | None
    std: float | None
    ci95: tuple[float, float] | None
    per_run: tuple[float | None, ...]


@dataclass(frozen=True)
class Difference:
    """The paired difference b - a of one metric over runs.

    mean, ci95: of the differences; the interval is Student's t.
    p_value: two-sided paired t-test; None where the differences do not vary or one run is all.
    lower_in: runs in which b is lower than a.
    runs: how many runs both strategies have a value in.
    """

    mean: float
    ci95: tuple[float, float] | None
    p_value: float | None
    lower_in: int
    runs: int

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval excludes zero."""
        return self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]


def summarise(values: Sequence[float | None]) -> Summary:
    """Return a metric's summary over runs; None stands for a run without a value.

    >>> summarise([1.0, 2.0, 3.0]).mean
    2.0
    """
    known = [value for value in values if value is not None]
    per_run = tuple(values)
    if not known or len(known) < len(values):
        return Summary(None, None, None, per_run)
    mean = float(np.mean(known))
    if len(known) < 2:
        return Summary(mean, None, None, per_run)
    return Summary(mean, float(np.std(known, ddof=1)), _interval(known), per_run)


def paired_difference(a: Sequence[float | None], b: Sequence[float | None]) -> Difference | None:
    """Return b - a over the runs in which both have a value; None if there is no such run."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not pairs:
        return None
    differences = [y - x for x, y in pairs]
    mean = float(np.mean(differences))
    spread = float(np.std(differences, ddof=1)) if len(pairs) > 1 else 0.0
    p_value = None
    if spread > 0:
        t = abs(mean) / (spread / math.sqrt(len(pairs)))
        p_value = float(2 * stdtr(len(pairs) - 1, -t))
    return Difference(
        mean=mean,
        ci95=_interval(differences) if len(pairs) > 1 else None,
        p_value=p_value,
        lower_in=sum(difference < 0 for difference in differences),
        runs=len(pairs),
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean of two values or more."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.5 + _CONFIDENCE / 2)) * error
    return mean - half, mean + half
