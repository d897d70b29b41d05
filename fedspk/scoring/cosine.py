"""Cosine scoring of embeddings against speaker profiles."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError

FloatArray: TypeAlias = npt.NDArray[np.float32]

_LENGTH_FLOOR = 1e-12


def normalise(embeddings: FloatArray) -> FloatArray:
    """Return embeddings (..., D) scaled to length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    scaled: FloatArray = np.asarray(embeddings / np.maximum(lengths, _LENGTH_FLOOR), np.float32)
    return scaled


def make_profile(embeddings: FloatArray) -> FloatArray:
    """Return a speaker's profile (D,): the normalised mean of normalised embeddings (N, D).

    Raises:
        FedspkError: there is no embedding to make a profile of.
    """
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise FedspkError("a speaker profile needs at least one enrolment embedding.")
    return normalise(normalise(embeddings).mean(axis=0))


def cosine_scores(profiles: FloatArray, embeddings: FloatArray) -> FloatArray:
    """Return the cosines (P, N) between profiles (P, D) and test embeddings (N, D), in [-1, 1]."""
    scores: FloatArray = np.clip(normalise(profiles) @ normalise(embeddings).T, -1.0, 1.0)
    return scores
