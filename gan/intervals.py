"""95 % intervals of figures over speakers, who are redrawn whole: one has many patches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedspk.seeds import numpy_generator

Interval = tuple[float, float]
Values = npt.NDArray[np.float64]

_RESAMPLES = 1000
_TAIL = 0.025


def redrawn_speakers(count: int, *seed: int | str) -> npt.NDArray[np.int64]:
    """Return the numbers (resamples, count) of speakers drawn with replacement.

    Give groups that have nothing to do with one another seeds of their own.
    """
    return numpy_generator(*seed, "speakers redrawn").integers(count, size=(_RESAMPLES, count))


def percentile_interval(redrawn: Values) -> Interval:
    """Return the percentile bootstrap interval of a figure's values over redrawn speakers."""
    low, high = np.quantile(redrawn, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def share_interval(redrawn: Values, share: float, speakers: int) -> Interval:
    """Return the interval of a share (0 to 1) from its values over redrawn speakers.

    Where nothing varies because the share is 0 or 1, redrawing tells nothing; the other end is
    then what so many speakers without a single exception allow, each counted as one trial.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case
    of the binomial", Biometrika 1934.
    """
    allowed = 1 - _TAIL ** (1 / speakers)
    if share == 0:
        return 0.0, float(allowed)
    if share == 1:
        return float(1 - allowed), 1.0
    return percentile_interval(redrawn)
