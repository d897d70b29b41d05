"""How good invented voices are, and what they give away: figures over embeddings.

Embeddings come as (S, T, D) float32: S speakers, T takes of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedspk.metrics import bootstrap_eer, equal_error_rate
from fedspk.model import HeadConfig, build_model
from fedspk.scoring import cosine_scores, make_profile
from fedspk.seeds import derive, numpy_generator
from fedspk.training import TrainingConfig, fit

FloatArray = npt.NDArray[np.float32]
Interval = tuple[float, float]

_RESAMPLES = 1000
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
    first = _unit(embeddings[:, 0])
    rows, columns = np.triu_indices(len(first), 1)
    distances: FloatArray = 1 - (first @ first.T)[rows, columns]
    return distances


def same_speaker_distances(embeddings: FloatArray) -> FloatArray:
    """Return the cosine distances between all pairs of takes of one speaker."""
    unit = _unit(embeddings)
    rows, columns = np.triu_indices(unit.shape[1], 1)
    distances: FloatArray = 1 - (unit @ unit.transpose(0, 2, 1))[:, rows, columns]
    return distances.ravel()


def speaker_eer(embeddings: FloatArray) -> float:
    """Return the EER (0 to 1) of telling whether two takes are of one speaker."""
    same, other = same_speaker_distances(embeddings), other_speaker_distances(embeddings)
    return equal_error_rate(-same, -other).value


@dataclass(frozen=True)
class Detection:
    """How well a network tells made patches from real ones it has not heard: EER, 0 to 1."""

    eer: float
    interval: Interval


def detect(real: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor], seed: int) -> Detection:
    """Train a detector on the first of each and test it on the second; (N, frames, bins) each."""
    bins = real[0].shape[2]
    model = build_model("tdnn", HeadConfig("binary"), bins=bins, seed=derive(seed, "detector"))
    fit(model, _RealOrMade(real[0], made[0]), _DETECTOR, seed=seed)
    with torch.inference_mode():
        scores = [
            model.owner_scores_of_embedding(model(each)).numpy() for each in (real[1], made[1])
        ]
    return Detection(
        equal_error_rate(*scores).value,
        bootstrap_eer(*scores, seed=derive(seed, "detector interval"), samples=_RESAMPLES),
    )


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


@dataclass(frozen=True)
class Memorisation:
    """Whether made voices are training speakers, beside real speakers that training never heard.

    Rates are shares (0 to 1) of the trials of one patch against one training speaker that reach
    the EER threshold; intervals are 95 % bootstrap over speakers. `nearer` is the share of made
    patches that lie nearer to a training patch than 95 % of held-out ones do: 0.05 if nothing was
    learned by heart.
    """

    threshold: float
    made_rate: float
    made_interval: Interval
    held_out_rate: float
    held_out_interval: Interval
    difference_interval: Interval
    nearer: float
    nearer_interval: Interval


def memorisation(
    train: FloatArray, held_out: FloatArray, made: FloatArray, seed: int
) -> Memorisation:
    """Compare made and held-out speakers' takes with the training speakers' (S, T, D)."""
    profiles = np.stack([make_profile(speaker) for speaker in train])
    threshold = _eer_threshold(train, profiles)
    accepted = [_accepted(each, profiles, threshold) for each in (made, held_out)]
    rates = [_redrawn(each, seed) for each in accepted]
    nearest = [_nearest(each, train) for each in (made, held_out)]
    cut = float(np.quantile(nearest[1], 0.05))
    near = (nearest[0] < cut).mean(axis=1)
    return Memorisation(
        threshold=threshold,
        made_rate=float(accepted[0].mean()),
        made_interval=_interval(rates[0]),
        held_out_rate=float(accepted[1].mean()),
        held_out_interval=_interval(rates[1]),
        difference_interval=_interval(rates[0] - rates[1]),
        nearer=float(near.mean()),
        nearer_interval=_interval(_redrawn(near, seed)),
    )


def _eer_threshold(train: FloatArray, profiles: FloatArray) -> float:
    """Return where the training speakers' own trials have equal errors.

    A patch is tried against its speaker's profile of the other patches.
    """
    takes = train.shape[1]
    target = [
        cosine_scores(make_profile(np.delete(speaker, take, axis=0))[np.newaxis], speaker[[take]])
        for speaker in train
        for take in range(takes)
    ]
    scores = _against(train, profiles)
    others = ~np.eye(len(train), dtype=bool)
    return equal_error_rate(np.concatenate(target).ravel(), scores[others].ravel()).threshold


def _against(voices: FloatArray, profiles: FloatArray) -> FloatArray:
    """Return the scores (S, profiles, T) of every take against every profile."""
    speakers, takes, dim = voices.shape
    scores = cosine_scores(profiles, voices.reshape(-1, dim))  # (profiles, S * T)
    shaped: FloatArray = scores.reshape(len(profiles), speakers, takes).transpose(1, 0, 2)
    return shaped


def _accepted(voices: FloatArray, profiles: FloatArray, threshold: float) -> FloatArray:
    """Return each speaker's share of trials that reach the threshold, (S,)."""
    shares: FloatArray = (_against(voices, profiles) >= threshold).mean(axis=(1, 2))
    return shares


def _nearest(voices: FloatArray, train: FloatArray) -> FloatArray:
    """Return the cosine distance (S, T) of every take to the nearest training take."""
    dim = voices.shape[2]
    scores = _unit(voices).reshape(-1, dim) @ _unit(train).reshape(-1, dim).T
    nearest: FloatArray = 1 - scores.max(axis=1).reshape(voices.shape[:2])
    return nearest


def _redrawn(shares: FloatArray, seed: int) -> npt.NDArray[np.float64]:
    """Return the means of redrawn speakers' shares (S,), one for each bootstrap sample."""
    generator = numpy_generator(seed, "speakers redrawn", len(shares))
    drawn = generator.integers(len(shares), size=(_RESAMPLES, len(shares)))
    means: npt.NDArray[np.float64] = np.asarray(shares, dtype=np.float64)[drawn].mean(axis=1)
    return means


def _interval(values: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _unit(embeddings: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    unit: FloatArray = embeddings / np.maximum(lengths, 1e-12)
    return unit


def _root(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: npt.NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root
