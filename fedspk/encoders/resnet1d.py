"""One-dimensional ResNets: convolutions over time, frequency bins as channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fedspk.encoders.base import Encoder
from fedspk.encoders.pooling import AttentiveStatisticsPooling
from fedspk.errors import FedspkError

_CHANNELS = (64, 128, 256, 512)
_GROUPS = 8
_MOST_BLOCKS = 64


class ResNet1d(Encoder):
    """Basic residual blocks over time, attentive statistics pooling, an affine embedding.

    Args:
        blocks: blocks in each of the four stages: (2, 2, 2, 2) is -18, (3, 4, 6, 3) is -34.
        width: multiplies the stages' 64, 128, 256, 512 channels.
        feature_scale: when set, the embedding is normalised to this length (feature normalisation,
            Ranjan et al., arXiv 1703.09507, equation 4).

    Source: Bhattacharya, Alam, Kenny, "Deep speaker recognition: modular or monolithic?",
    Interspeech 2019: block counts, pooling and embedding; channels and strides are those of
    He et al., "Deep residual learning", table 1. Group normalisation in place of batch's, for
    devices whose data differ.

    Raises:
        FedspkError: `blocks` does not give four counts.
    """

    def __init__(
        self,
        *,
        bins: int = 80,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: float = 1.0,
        embedding_dim: int = 512,
        feature_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.feature_scale = feature_scale
        if len(blocks) != len(_CHANNELS) or not all(1 <= count <= _MOST_BLOCKS for count in blocks):
            raise FedspkError(
                f"encoder resnet1d has four stages of 1 to {_MOST_BLOCKS} blocks; got {blocks}."
            )
        channels = [max(_GROUPS, round(c * width / _GROUPS) * _GROUPS) for c in _CHANNELS]
        self.stem = nn.Sequential(
            nn.Conv1d(bins, channels[0], 7, padding=3, bias=False),
            nn.GroupNorm(_GROUPS, channels[0]),
            nn.ReLU(inplace=True),
        )
        stages: list[nn.Module] = []
        inputs = channels[0]
        for stage, (outputs, count) in enumerate(zip(channels, blocks, strict=True)):
            for block in range(count):
                stages.append(_BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.pooling = AttentiveStatisticsPooling(inputs)
        self.embedding = nn.Linear(2 * inputs, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        x = self.stages(self.stem(features.transpose(1, 2)))  # (B, C, T/8)
        embedding: Tensor = self.embedding(self.pooling(x))
        if self.feature_scale is not None:
            embedding = self.feature_scale * F.normalize(embedding.float(), dim=1)
        return embedding


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(_GROUPS, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
