"""What a generator has by heart: made voices against the speech that it was trained on.

Three questions, because each misses what another finds:

- *Who*: does a made patch verify as a training speaker more often than a stranger's? Blind to the
  replay of a few speakers, who are few among all.
- *What*: do made patches lie nearer to training patches than strangers' do? Blind to a few voices
  among many that replay.
- *Which*: is any single made voice nearer to training speech than chance allows for that many?

Embeddings come as (S, V, T, D) float32: S people, V versions of each (natural speech, and played
at the other speeds that training heard), T patches of each; made voices as (S, T, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedspk.metrics import equal_error_rate
from fedspk.scoring.cosine import cosine_scores, make_profile, normalise
from gan.intervals import Interval, Values, percentile_interval, redrawn_speakers, share_interval

FloatArray = npt.NDArray[np.float32]

NEAR = 0.05
"""The share of held-out patches that counts as near to training patches."""

_LEVEL = 0.025  # of every question: what a 95 % interval leaves on one side
_LEAST_DISTANCE = 1e-6  # cosines in float32 tell no smaller one
_SHAPES = 1e-3, 1e3
_SHAPE_ERROR = 1.28 * 0.78  # of one value's estimate: 90 % one-sided, asymptotic deviation


@dataclass(frozen=True)
class Memorisation:
    """Whether made voices are training speakers, beside people whom training never heard.

    Rates are shares (0 to 1) of the trials of one patch against one training speaker, at every
    speed, that reach the EER threshold. `nearer` is the share of made patches that lie nearer to a
    training patch than 95 % of the held-out ones do: 0.05 if nothing was learned by heart.
    `voice_distance` is the cosine distance to the nearest training patch below which a voice
    counts as a replay, and `replaying` how many of the `voices` do.

    Intervals are 95 % bootstraps in which made voices and held-out people are both redrawn, the
    cut of `nearer` with them; training speakers stay, since they are who was trained on.
    """

    threshold: float
    made_rate: float
    made_interval: Interval
    held_out_rate: float
    held_out_interval: Interval
    difference_interval: Interval
    nearer: float
    nearer_interval: Interval
    voices: int
    voice_distance: float
    replaying: int
    is_found: bool
    """Whether any of the three says so; each errs in about 2.5 % of harmless generators."""


def memorisation(
    train: FloatArray, held_out: FloatArray, made: FloatArray, seed: int
) -> Memorisation:
    """Compare made voices (S, T, D) with training speakers, beside held-out people (S, V, T, D).

    Held-out people at speeds that training did not hear would lie too far away.
    """
    draws = [redrawn_speakers(len(each), seed, who) for each, who in ((made, 0), (held_out, 1))]
    profiles = np.stack([make_profile(version) for person in train for version in person])
    threshold = _eer_threshold(train[:, 0])
    rates = [_accepted(_by_person(each), profiles, threshold) for each in (made, held_out)]
    redrawn = [rate[drawn].mean(axis=1) for rate, drawn in zip(rates, draws, strict=True)]
    made_rate, held_out_rate = (float(rate.mean()) for rate in rates)
    difference = percentile_interval(redrawn[0] - redrawn[1])

    nearest = [_nearest(_by_person(each), train) for each in (made, held_out)]
    nearer, nearer_interval = _nearer(nearest, draws)

    strangers = np.concatenate([nearest[1], _nearest_others(train)])
    voice_distance = replay_distance(strangers.min(axis=1), len(made))
    replaying = int((nearest[0].min(axis=1) < voice_distance).sum())
    return Memorisation(
        threshold=threshold,
        made_rate=made_rate,
        made_interval=share_interval(redrawn[0], made_rate, len(made)),
        held_out_rate=held_out_rate,
        held_out_interval=share_interval(redrawn[1], held_out_rate, len(held_out)),
        difference_interval=difference,
        nearer=nearer,
        nearer_interval=nearer_interval,
        voices=len(made),
        voice_distance=voice_distance,
        replaying=replaying,
        is_found=difference[0] > 0 or nearer_interval[0] > NEAR or replaying > 0,
    )


def replay_distance(strangers: Values, voices: int) -> float:
    """Return below which distance to training speech one of so many voices is no stranger.

    Strangers' distances are minima over many patches, so they follow a Weibull distribution where
    they are small. One voice falls below the returned quantile with a probability of 2.5 % over
    their number (Bonferroni), so that any of them does in 2.5 % at most. The shape is taken at the
    lower end of its one-sided 90 % interval: few strangers tell it badly.

    Args:
        strangers: the smallest distance (S,) of each real person to other people's training
            patches. A person at several speeds has more patches than a made voice, so the distance
            is a little too small, never too large.
        voices: how many are tried.

    Source: Coles, "An introduction to statistical modeling of extreme values", section 3.2;
    interval of the shape: Bain and Engelhardt, "Simple approximate distributional results for
    confidence and tolerance limits for the Weibull distribution", Technometrics 1981.
    """
    shape, scale = _weibull(strangers)
    shape *= 1 - _SHAPE_ERROR / np.sqrt(len(strangers))
    return float(scale * (-np.log1p(-_LEVEL / voices)) ** (1 / shape))


def _weibull(values: Values) -> tuple[float, float]:
    """Return the shape and the scale (maximum likelihood) of positive values (N,)."""
    logs = np.log(values / values.max())
    low, high = np.log(_SHAPES)
    for _ in range(60):  # the likelihood's slope falls with the shape: bisect its zero
        shape = np.exp((low + high) / 2)
        weights = np.exp(shape * logs)
        is_above = weights @ logs / weights.sum() - logs.mean() > 1 / shape
        low, high = (low, np.log(shape)) if is_above else (np.log(shape), high)
    return float(shape), float(values.max() * np.mean(np.exp(shape * logs)) ** (1 / shape))


def _by_person(voices: FloatArray) -> FloatArray:
    """Return (S, patches, D): all versions of a person together."""
    return voices.reshape(len(voices), -1, voices.shape[-1])


def _eer_threshold(train: FloatArray) -> float:
    """Return where the training speakers' own trials (S, T, D) have equal errors.

    A patch is tried against its speaker's profile of the other patches.
    """
    takes = train.shape[1]
    profiles = np.stack([make_profile(speaker) for speaker in train])
    target = [
        cosine_scores(make_profile(np.delete(speaker, take, axis=0))[np.newaxis], speaker[[take]])
        for speaker in train
        for take in range(takes)
    ]
    scores = cosine_scores(profiles, _flat(train)).reshape(len(train), len(train), takes)
    others = ~np.eye(len(train), dtype=bool)
    return equal_error_rate(np.concatenate(target).ravel(), scores[others].ravel()).threshold


def _accepted(people: FloatArray, profiles: FloatArray, threshold: float) -> Values:
    """Return each person's share of trials that reach the threshold, (S,)."""
    return np.array([np.mean(cosine_scores(profiles, each) >= threshold) for each in people])


def _nearer(distances: list[Values], draws: list[npt.NDArray[np.int64]]) -> tuple[float, Interval]:
    """Return the share of made patches below the held-out ones' cut, and its interval.

    Distances (S, patches) and redrawn speakers come as those of made voices and of held-out people.
    """
    made, held_out = distances
    share = float((made < np.quantile(held_out, NEAR)).mean())
    redrawn = [
        float((made[ours] < np.quantile(held_out[theirs], NEAR)).mean())
        for ours, theirs in zip(*draws, strict=True)
    ]
    return share, share_interval(np.array(redrawn), share, len(made))


def _nearest(people: FloatArray, train: FloatArray) -> Values:
    """Return the cosine distance (S, patches) of every patch to the nearest training patch."""
    patches = normalise(_flat(train))
    return np.stack([_distances(person @ patches.T) for person in normalise(people)])


def _nearest_others(train: FloatArray) -> Values:
    """Return the same of training speakers, their own patches left out: strangers to the rest."""
    return np.stack([_distances(scores) for scores in _scores_of_others(train)])


def _scores_of_others(train: FloatArray) -> Iterator[FloatArray]:
    people = normalise(_by_person(train))
    count, patches, _ = people.shape
    for number, person in enumerate(people):
        scores = (person @ _flat(people).T).reshape(patches, count, patches)
        yield np.delete(scores, number, axis=1).reshape(patches, -1)


def _distances(scores: FloatArray) -> Values:
    distances: Values = 1 - scores.max(axis=1).astype(np.float64)
    return np.maximum(distances, _LEAST_DISTANCE)


def _flat(people: FloatArray) -> FloatArray:
    return people.reshape(-1, people.shape[-1])
