"""Cosine scoring: profiles are directions, scores are cosines."""

from __future__ import annotations

import numpy as np
import pytest

from fedspk.errors import FedspkError
from fedspk.scoring import cosine_scores, make_profile


def _embeddings(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


def test_profile_is_a_unit_vector_that_weighs_every_embedding_alike() -> None:
    embeddings = _embeddings(5)
    lengths = np.array([[1.0], [5.0], [0.1], [2.0], [3.0]], np.float32)
    profile = make_profile(embeddings)
    assert np.linalg.norm(profile) == pytest.approx(1)
    np.testing.assert_allclose(make_profile(embeddings * lengths), profile, atol=1e-6)


def test_scores_are_cosines_of_every_pair() -> None:
    profiles, tests = _embeddings(3), _embeddings(4, seed=1)
    scores = cosine_scores(profiles, tests)
    assert scores.shape == (3, 4)
    assert scores.dtype == np.float32
    expected = profiles[1] @ tests[2] / np.linalg.norm(profiles[1]) / np.linalg.norm(tests[2])
    assert scores[1, 2] == pytest.approx(expected, abs=1e-6)
    assert np.abs(cosine_scores(profiles, profiles)).max() <= 1


def test_silent_embedding_scores_zero() -> None:
    assert cosine_scores(_embeddings(1), np.zeros((1, 16), np.float32)).item() == 0


def test_profile_of_nothing_is_a_clear_error() -> None:
    with pytest.raises(FedspkError, match="at least one"):
        make_profile(np.zeros((0, 16), np.float32))
