"""Intervals over speakers hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from gan.intervals import percentile_interval, redrawn_speakers, share_interval


def test_an_interval_covers_the_truth_where_one_speakers_patches_are_alike() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for draw in range(100):
        shares = np.repeat(generator.normal(size=30), 8)  # eight patches, one speaker, one value
        means = shares.reshape(30, 8).mean(axis=1)[redrawn_speakers(30, draw)].mean(axis=1)
        low, high = percentile_interval(means)
        covered.append(low <= 0 <= high)
    assert np.mean(covered) > 0.85


def test_no_exception_among_few_speakers_is_no_certainty() -> None:
    never, always = np.zeros(1000), np.ones(1000)
    # 0.9289 ** 50 = 0.025: so many speakers without an exception are as rare as that
    assert share_interval(never, 0.0, 50) == (0.0, pytest.approx(1 - 0.025 ** (1 / 50)))
    assert share_interval(always, 1.0, 50) == (pytest.approx(0.025 ** (1 / 50)), 1.0)


def test_groups_of_one_size_are_redrawn_apart() -> None:
    assert (redrawn_speakers(20, 1, 0) != redrawn_speakers(20, 1, 1)).any()
    assert (redrawn_speakers(20, 1, 0) == redrawn_speakers(20, 1, 0)).all()
