"""What secure sums leave of robustness: the aggregator sees the cohorts' means, no single update.

A dishonest device is bounded by its own clip only if it is honest about clipping; what it cannot
hide is a cohort's mean that is too long, or one that lies far from the other cohorts'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aggregator.optimisers import Float64Array
from fedspk.errors import FedspkError
from fedspk.secagg.config import Combination

FEWEST_COHORTS = 5
"""Below this, a median or a trimmed mean would follow a dishonest cohort, or throw most away."""

_PLANNED_COHORTS = 7
"""Two may then be lost, or found to be dishonest."""

TRIMMED_SHARE = 0.2
"""The share of the cohorts that a trimmed mean drops at either end of every coordinate."""

_BLOCK = 1 << 15  # coordinates at a time: all cohorts' stay in the processor's cache
_SLACK = 1e-6  # the devices clip in float32
_IMPROBABLE = 2.0**-40


def fewest_cohorts(combination: Combination) -> int:
    """Return how many cohorts must be left for a combination."""
    return 1 if combination == "mean" else FEWEST_COHORTS


def planned_cohorts(devices: int, combination: Combination) -> int:
    """Return into how many cohorts a round of so many devices is divided at least.

    For a median or a trimmed mean seven, if that makes cohorts of two devices or more, else five.
    """
    if combination == "mean":
        return 1
    return _PLANNED_COHORTS if devices >= 2 * _PLANNED_COHORTS else FEWEST_COHORTS


def combine(
    means: Sequence[Float64Array],
    weights: Sequence[float],
    combination: Combination,
) -> Float64Array:
    """Return one mean delta (n,) float64 from the means of the cohorts.

    "mean" weighs the cohorts and so gives the mean over all devices. "median" and "trimmed_mean"
    are coordinate-wise and count every cohort once (Yin et al. 2018, definitions 1 and 2, with
    cohorts for workers), which should therefore be of about one size. They bear dishonest devices
    in fewer than half of the cohorts, or in `TRIMMED_SHARE` of them.

    Args:
        means: each (n,) float64.
        weights: the sum of the weights within each cohort, above 0.

    Raises:
        FedspkError: there are no cohorts, or too few for a median or a trimmed mean, or one has no
            weight.
    """
    needed = fewest_cohorts(combination)
    if len(means) < needed:
        raise FedspkError(
            f"The {combination} of cohorts needs {needed} of them and {len(means)} are there; "
            "make cohort_size smaller."
        )
    if not min(weights) > 0:
        raise FedspkError("A cohort's weights add up to nothing; its sum cannot count.")
    shares = np.array(weights) / math.fsum(weights)
    dropped = math.floor(TRIMMED_SHARE * len(means))
    combined = np.empty_like(means[0], dtype=np.float64)
    for start in range(0, combined.size, _BLOCK):
        block = np.stack([mean[start : start + _BLOCK] for mean in means])
        if combination == "mean":
            middle = np.einsum("c,cn->n", shares, block)  # @ would wake all cores for so little
        elif combination == "median":
            middle = np.median(block, axis=0)
        else:
            block.sort(axis=0)
            middle = block[dropped : len(means) - dropped].mean(axis=0)
        combined[start : start + _BLOCK] = middle
    return combined


def largest_norm(
    norm: float, size: int, *, rounding_error: float = 0.0, noise: float = 0.0
) -> float:
    """Return the L2 norm that a mean of honest updates does not exceed.

    Args:
        norm: the devices' clip.
        size: length of an update.
        rounding_error: largest rounding error of one coordinate of the mean.
        noise: standard deviation of differential privacy's noise in one coordinate of the mean; a
            longer noise has probability 2^-40 (Laurent and Massart 2000, lemma 1).
    """
    tail = math.sqrt(-2 * math.log(_IMPROBABLE))
    return norm * (1 + _SLACK) + rounding_error * math.sqrt(size) + noise * (math.sqrt(size) + tail)


def require_norm(mean: Float64Array, largest: float) -> None:
    """Check a cohort's mean (n,) before it counts.

    Raises:
        FedspkError: it is not finite or longer than `largest_norm`: a device of the cohort did not
            keep to its clip, and the cohort must be left out.
    """
    blocks = (mean[start : start + _BLOCK] for start in range(0, mean.size, _BLOCK))
    norm = math.sqrt(math.fsum(float(np.square(block).sum()) for block in blocks))
    if not norm <= largest:
        raise FedspkError(
            f"A cohort's mean has the norm {norm:.4g} where {largest:.4g} is the most that honest "
            "devices reach; the cohort is left out."
        )
