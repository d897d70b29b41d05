"""VGG-M for spectrograms, whole (110 million weights in one layer) and pooled for small devices."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedspk.encoders.base import Encoder
from fedspk.encoders.pooling import StatisticsPooling
from fedspk.errors import FedspkError

Normalisation = Literal["batch", "group"]

_CHANNELS = (96, 256, 384, 256, 256)
_GROUPS = 8
_SMALLEST_MAP = 32


class VGGM(Encoder):
    """VGG-M on a spectrogram of fixed size, as VoxCeleb's.

    conv1 7x7/2 (96), pool 3x3/2; conv2 5x5/2 (256), pool 3x3/2; conv3-5 3x3 (384, 256, 256);
    fc6 4096, fc7 1024, which is the embedding (before any rectifier). Batch normalisation and
    ReLU follow conv1 to fc6.

    Source: Chatfield et al., "Return of the devil in the details", BMVC 2014 (VGG-M) and Nagrani,
    Chung, Zisserman, "VoxCeleb", Interspeech 2017, table 3. Their padding is not printed; it is
    inferred: padding 1, 2, 1, 1, 1 and pools that round up turn 350 x 80 into 21 x 5, so that fc6
    has 21 * 5 * 256 * 4096 = 110 million weights, the figure known for Woubie and Bäckström's
    network.

    Raises:
        FedspkError: the spectrogram is smaller than the layers need, or not of the size built for.
    """

    def __init__(
        self,
        *,
        bins: int = 80,
        frames: int = 350,
        width: float = 1.0,
        normalisation: Normalisation = "batch",
        embedding_dim: int = 1024,
    ) -> None:
        super().__init__()
        _check_size(bins, frames)
        self.bins, self.frames = bins, frames
        self.embedding_dim = embedding_dim
        channels = _scaled_channels(width)
        hidden = round(4096 * width)
        self.convolutions = nn.Sequential(
            *_convolution(1, channels[0], 7, 2, padding=1, normalisation=normalisation),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *_convolution(channels[0], channels[1], 5, 2, normalisation=normalisation),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *_convolution(channels[1], channels[2], 3, normalisation=normalisation),
            *_convolution(channels[2], channels[3], 3, normalisation=normalisation),
            *_convolution(channels[3], channels[4], 3, normalisation=normalisation),
        )
        positions = _after_two_pools(frames) * _after_two_pools(bins)
        self.fc6 = nn.Linear(positions * channels[4], hidden)
        self.norm6 = _norm1d(hidden, normalisation)
        self.fc7 = nn.Linear(hidden, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1:] != (self.frames, self.bins):
            raise FedspkError(
                f"encoder vggm was built for {self.frames} x {self.bins} features and got "
                f"{features.shape[1]} x {features.shape[2]}; use vggm-pooled for other lengths."
            )
        x = self.convolutions(features.unsqueeze(1))  # (B, 256, 21, 5)
        x = F.relu(self.norm6(self.fc6(x.flatten(1))))  # (B, 4096)
        embedding: Tensor = self.fc7(x)
        return embedding


class PooledVGGM(Encoder):
    """VGG-M's convolutions, statistics over time instead of fc6: any length, few weights.

    Pooling comes before normalisation in the first two layers: the same layers at a quarter of the
    memory traffic, which is most of the time of a narrow network on a CPU. `stem_channels` sets
    conv1's width by itself, because that layer sees 100 times the positions of conv5.
    Group normalisation by default: it keeps no running statistics, which non-identical devices
    would pull apart (arXiv 2303.10630).

    Raises:
        FedspkError: the spectrogram has too few frames or bins.
    """

    def __init__(
        self,
        *,
        bins: int = 80,
        width: float = 1.0,
        stem_channels: int | None = None,
        normalisation: Normalisation = "group",
        embedding_dim: int = 256,
    ) -> None:
        super().__init__()
        _check_size(bins, _SMALLEST_MAP)
        self.embedding_dim = embedding_dim
        channels = _scaled_channels(width)
        channels[0] = stem_channels or channels[0]
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.convolutions = nn.Sequential(
            *_convolution(1, channels[0], 7, 2, pool=pool, normalisation=normalisation),
            *_convolution(channels[0], channels[1], 5, 2, pool=pool, normalisation=normalisation),
            *_convolution(channels[1], channels[2], 3, normalisation=normalisation),
            *_convolution(channels[2], channels[3], 3, normalisation=normalisation),
            *_convolution(channels[3], channels[4], 3, normalisation=normalisation),
        )
        self.pooling = StatisticsPooling()
        with torch.no_grad():
            pooled = self.pooling(self.convolutions.eval()(torch.zeros(1, 1, _SMALLEST_MAP, bins)))
        self.convolutions.train()
        self.embedding = nn.Linear(pooled.shape[1], embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        x = self.convolutions(features.unsqueeze(1))  # (B, C, T/16, bins/16)
        embedding: Tensor = self.embedding(self.pooling(x))
        return embedding


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    normalisation: Normalisation,
    padding: int | None = None,
    pool: nn.Module | None = None,
) -> list[nn.Module]:
    convolution = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding=kernel // 2 if padding is None else padding,
        bias=False,
    )
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    norm = nn.BatchNorm2d(outputs) if normalisation == "batch" else nn.GroupNorm(_GROUPS, outputs)
    return [convolution, *([pool] if pool else []), norm, nn.ReLU(inplace=True)]


def _norm1d(width: int, normalisation: Normalisation) -> nn.Module:
    return nn.BatchNorm1d(width) if normalisation == "batch" else nn.GroupNorm(_GROUPS, width)


def _scaled_channels(width: float) -> list[int]:
    if not 0 < width <= 4:
        raise FedspkError(f"encoder width is {width}; it must lie between 0 and 4.")
    return [max(_GROUPS, round(channels * width / _GROUPS) * _GROUPS) for channels in _CHANNELS]


def _check_size(bins: int, frames: int) -> None:
    if min(bins, frames) < _SMALLEST_MAP:
        raise FedspkError(
            f"VGG-M needs at least {_SMALLEST_MAP} frames and bins, got {frames} x {bins}."
        )


def _after_two_pools(size: int) -> int:
    size = (size + 2 - 7) // 2 + 1  # conv1, padding 1
    size = -(-(size - 3) // 2) + 1  # pool, rounding up
    size = (size + 4 - 5) // 2 + 1  # conv2, padding 2
    return -(-(size - 3) // 2) + 1
