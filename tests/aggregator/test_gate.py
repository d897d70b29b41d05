from __future__ import annotations

import math

import pytest

from aggregator.gate import judge


def test_a_better_model_is_published():
    verdict = judge(0.5, start=0.6)
    assert verdict.published
    assert "0.5000 against 0.6000" in verdict.reason


def test_a_model_as_good_as_the_start_is_published():
    assert judge(0.6, start=0.6).published


@pytest.mark.parametrize(
    ("loss", "margin", "published"),
    [(0.64, 0.0, False), (0.64, 0.05, True), (0.66, 0.05, False)],
)
def test_a_worse_model_is_published_within_the_margin_only(loss, margin, published):
    assert judge(loss, start=0.6, margin=margin).published is published


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, -math.inf])
def test_a_model_without_a_finite_loss_is_not_published(loss):
    assert not judge(loss, start=0.6, margin=10.0).published


@pytest.mark.parametrize("start", [None, math.nan, math.inf])
def test_nothing_is_published_when_the_start_was_not_measured(start):
    verdict = judge(0.1, start=start)
    assert not verdict.published
    assert "initial model" in verdict.reason
