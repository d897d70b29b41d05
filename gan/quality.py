"""How good invented voices are: figures over embeddings.

Embeddings come as (S, T, D) float32: S speakers, T takes of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedspk.metrics import equal_error_rate
from fedspk.model import HeadConfig, build_model
from fedspk.scoring.cosine import normalise
from fedspk.seeds import derive, numpy_generator
from fedspk.training import TrainingConfig, fit
from gan.intervals import Interval, redrawn_speakers, share_interval

FloatArray = npt.NDArray[np.float32]

_DETECTOR = TrainingConfig(
    steps=300, batch_size=32, learning_rate=1e-3, final_learning_rate=1e-5, optimiser="adamw"
)


def frechet_distance(first: FloatArray, second: FloatArray) -> float:
    """Return the Fréchet distance between Gaussians fitted to embeddings (N, D) and (M, D).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2). It is biased by the numbers of points:
    compare only distances of equal numbers.

    Source: Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017, eq. 6.
    """
    mean_a, mean_b = (points.mean(axis=0, dtype=np.float64) for points in (first, second))
    cov_a, cov_b = (np.cov(points, rowvar=False, dtype=np.float64) for points in (first, second))
    root = _root(cov_a)
    cross = _root(root @ cov_b @ root)
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * cross)
    return float(max(0.0, distance))


def other_speaker_distances(embeddings: FloatArray) -> FloatArray:
    """Return the cosine distances between all pairs of different speakers' first takes."""
    first = normalise(embeddings[:, 0])
    rows, columns = np.triu_indices(len(first), 1)
    distances: FloatArray = 1 - (first @ first.T)[rows, columns]
    return distances


def same_speaker_distances(embeddings: FloatArray) -> FloatArray:
    """Return the cosine distances between all pairs of takes of one speaker."""
    unit = normalise(embeddings)
    rows, columns = np.triu_indices(unit.shape[1], 1)
    distances: FloatArray = 1 - (unit @ unit.transpose(0, 2, 1))[:, rows, columns]
    return distances.ravel()


def speaker_eer(embeddings: FloatArray) -> float:
    """Return the EER (0 to 1) of telling whether two takes are of one speaker."""
    same, other = same_speaker_distances(embeddings), other_speaker_distances(embeddings)
    return equal_error_rate(-same, -other).value


@dataclass(frozen=True)
class Detection:
    """How well a network tells made patches from real ones it has not heard: EER, 0 to 1.

    The interval is a 95 % bootstrap over the speakers of both.
    """

    eer: float
    interval: Interval


def detect(real: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor], seed: int) -> Detection:
    """Train a detector on the first of each and test it on the second.

    Patches come as (S, T, frames, bins): T takes of each of S speakers.
    """
    bins = real[0].shape[3]
    model = build_model("tdnn", HeadConfig("binary"), bins=bins, seed=derive(seed, "detector"))
    fit(model, _RealOrMade(real[0].flatten(0, 1), made[0].flatten(0, 1)), _DETECTOR, seed=seed)
    with torch.inference_mode():
        scores = [
            model.owner_scores_of_embedding(model(each.flatten(0, 1))).view(each.shape[:2]).numpy()
            for each in (real[1], made[1])
        ]
    eer = _eer(*scores)
    draws = [
        redrawn_speakers(len(each), seed, who) for each, who in zip(scores, (0, 1), strict=True)
    ]
    redrawn = [_eer(scores[0][a], scores[1][b]) for a, b in zip(*draws, strict=True)]
    return Detection(eer, share_interval(np.array(redrawn), eer, min(map(len, scores))))


def _eer(real: FloatArray, made: FloatArray) -> float:
    return equal_error_rate(real.ravel(), made.ravel()).value


@dataclass(frozen=True)
class _RealOrMade:
    """A `BatchSource` of real (class 0, the head's client) and made patches, half each."""

    real: Tensor
    made: Tensor

    def batches(self, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = numpy_generator(seed, "detector batches")
        half = batch_size // 2
        labels = torch.tensor([0] * half + [1] * half)
        while True:
            parts = [
                each[torch.from_numpy(generator.integers(len(each), size=half))]
                for each in (self.real, self.made)
            ]
            yield torch.cat(parts), labels


def _root(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: npt.NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
