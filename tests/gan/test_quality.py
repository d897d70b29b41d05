"""The figures of a report mean what they say: on embeddings whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedspk.parallel import one_torch_thread
from gan import quality
from gan.quality import (
    detect,
    frechet_distance,
    other_speaker_distances,
    same_speaker_distances,
    speaker_eer,
)

FloatArray = npt.NDArray[np.float32]
_DIM = 6


def speakers(count: int, seed: int, takes: int = 4, spread: float = 0.3) -> FloatArray:
    """Embeddings (count, takes, D) of speakers drawn at random, takes near their speaker."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(count, 1, _DIM))
    noise = spread * generator.normal(size=(count, takes, _DIM))
    return (centres + noise).astype(np.float32)


def test_the_frechet_distance_of_known_gaussians() -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(20_000, 2))
    moved = (points * [1.0, 3.0] + [2.0, 0.0]).astype(np.float32)
    # |(2, 0)|^2 + (1 - 3)^2 between N(0, I) and N((2, 0), diag(1, 9))
    assert frechet_distance(points.astype(np.float32), moved) == pytest.approx(8.0, rel=0.03)
    assert frechet_distance(moved, moved) == pytest.approx(0.0, abs=1e-6)


def test_distances_within_a_speaker_are_kept_apart_from_those_between() -> None:
    voices = speakers(10, seed=1, spread=0.01)
    assert same_speaker_distances(voices).shape == (10 * 6,)
    assert other_speaker_distances(voices).shape == (45,)
    assert same_speaker_distances(voices).max() < other_speaker_distances(voices).min()
    assert speaker_eer(voices) == 0.0
    assert 0.4 < speaker_eer(speakers(40, seed=2, spread=100.0)) < 0.6


def test_a_detector_knows_noise_from_waves_but_not_from_other_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "_DETECTOR", replace(quality._DETECTOR, steps=40))
    generator = torch.Generator().manual_seed(0)

    def noise(speakers: int) -> torch.Tensor:
        return torch.randn(speakers, 5, 40, 8, generator=generator)

    waves = noise(12) + 3 * torch.sin(torch.arange(40) / 2)[:, None]
    with one_torch_thread():
        told = detect((noise(12), noise(8)), (waves[:6], waves[6:]), seed=1)
        blind = detect((noise(12), noise(8)), (noise(12), noise(8)), seed=1)
    assert told.eer == 0.0
    assert told.interval == (0.0, pytest.approx(1 - 0.025 ** (1 / 6)))  # six speakers, no error
    assert 0.3 < blind.eer < 0.7
    assert blind.interval[0] <= blind.eer <= blind.interval[1]
