"""Pooling over time: a map of any length becomes a vector of one length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_VARIANCE_FLOOR = 1e-5


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time, every channel and frequency by itself.

    (B, C, T, F) -> (B, 2 C F); (B, C, T) -> (B, 2 C).
    Source: Snyder et al., "Deep neural network embeddings for text-independent speaker
    verification", Interspeech 2017, section 3.1. The frequency axis is kept, because where in the
    spectrum a channel responds is what tells two voices apart.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        mean = x.mean(2)
        deviation = (x.var(2, unbiased=False) + _VARIANCE_FLOOR).sqrt()
        return torch.cat([mean.flatten(1), deviation.flatten(1)], dim=1)


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation over time under learned weights: (B, C, T) -> (B, 2 C).

    Source: Okabe, Koshinaka, Shinoda, "Attentive statistics pooling for deep speaker embedding",
    Interspeech 2018, equations (3) to (6): one weight a frame.
    """

    def __init__(self, channels: int, attention_channels: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Conv1d(channels, attention_channels, 1)
        self.score = nn.Conv1d(attention_channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        scores = self.score(torch.tanh(self.hidden(x)))  # (B, 1, T), equation (3)
        weights = torch.softmax(scores.float(), dim=2)  # equation (4)
        mean = (weights * x).sum(2)  # equation (5)
        variance = (weights * (x - mean.unsqueeze(2)).square()).sum(2)  # equation (6)
        return torch.cat([mean, (variance + _VARIANCE_FLOOR).sqrt()], dim=1)
