"""What patches look like on average: the figures that a batch of made patches should share.

Normalised patches have mean 0 and variance 1 in every band, so what tells speech from noise, and
one voice from another, begins with second moments: which bands rise together, and how long.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LAGS = (1, 2, 4, 8, 16, 32)  # frames
_BROAD_BANDS = 20


def patch_moments(patches: Tensor) -> Tensor:
    """Return the moments (B, M) float32 of each of the patches (B, T, bins).

    The covariance of all pairs of bands; of every band its autocorrelation at lags of 1 to 32
    frames, its mean size and its skew.
    """
    frames = patches.shape[1]
    covariance = patches.transpose(1, 2) @ patches / frames  # (B, bins, bins)
    course = [(patches[:, lag:] * patches[:, :-lag]).mean(dim=1) for lag in _LAGS if lag < frames]
    shape = [patches.abs().mean(dim=1), (patches * patches.abs()).mean(dim=1)]
    return torch.cat([covariance.flatten(1), *course, *shape], dim=1)


def moment_distance(made: Tensor, real_mean: Tensor, real_spread: Tensor) -> Tensor:
    """Return how far the moments (B, M) of made patches are from real ones', a scalar.

    The mean over the batch and the spread (deviation) over the batch are compared with those of
    real batches, (M,) each: matching the mean alone would reward patches that are all alike.
    """
    mean = (made.mean(dim=0) - real_mean).abs().mean()
    return mean + (made.std(dim=0) - real_spread).abs().mean()


def voice_summary(patches: Tensor) -> Tensor:
    """Return (B, S) float32: which broad bands of each patch rise together.

    Two patches of one voice lie nearer to one another than two of different voices.
    """
    broad = torch.nn.functional.adaptive_avg_pool1d(patches, min(_BROAD_BANDS, patches.shape[2]))
    covariance = broad.transpose(1, 2) @ broad / patches.shape[1]
    row, column = torch.triu_indices(*covariance.shape[1:], device=patches.device).unbind()
    return covariance[:, row, column]
