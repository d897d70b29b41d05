"""Pooling over time: against the definition, and finite where nothing varies."""

from __future__ import annotations

import torch

from fedspk.encoders.pooling import AttentiveStatisticsPooling, StatisticsPooling


def test_statistics_are_mean_and_deviation_of_every_channel_and_frequency() -> None:
    x = torch.randn(2, 3, 50, 4)
    pooled = StatisticsPooling()(x)
    torch.testing.assert_close(pooled[:, :12], x.mean(2).flatten(1))
    torch.testing.assert_close(
        pooled[:, 12:], x.std(2, unbiased=False).flatten(1), rtol=1e-3, atol=1e-4
    )


def test_constant_input_has_a_finite_gradient() -> None:
    for pooling, shape in (
        (StatisticsPooling(), (2, 8, 20)),
        (AttentiveStatisticsPooling(8), (2, 8, 20)),
    ):
        x = torch.ones(shape, requires_grad=True)
        pooling(x).sum().backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


def test_attention_ignores_the_order_of_frames() -> None:
    pooling = AttentiveStatisticsPooling(8)
    x = torch.randn(2, 8, 30)
    shuffled = x[:, :, torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(pooling(x), pooling(shuffled))
