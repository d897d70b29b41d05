"""Real patches to learn from: crops of every public speaker's speech, through many channels.

A speaker's patches come from other places of the speech and each through a channel of its own
(`fedspk.sessions`, condition "training"), so what two of them share is the voice. Speech played
faster or slower is a further speaker's. Some speakers are held out from training, so that a
report can ask whether the generator has learned speakers by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedspk.audio import SAMPLE_RATE
from fedspk.cache import FeatureCache, FeatureRequest
from fedspk.corpora import Corpus, Utterance
from fedspk.errors import FedspkError
from fedspk.feature_table import FeatureTable
from fedspk.features import FrontEndConfig
from fedspk.seeds import derive, numpy_generator
from fedspk.sessions import SessionSpec

HELD_OUT = 0.2
"""The share of the speakers that training does not hear."""

_LEAST_SPEAKERS = 4
_CLEAN = 0.25  # share of the patches that no further channel is put on

Rows = tuple[int, ...]


@dataclass(frozen=True)
class PatchPlan:
    """How much is made of a corpus: patches a speaker and speed, and the speeds, natural first."""

    patches: int = 8
    speeds: tuple[float, ...] = (1.0, 0.9, 1.1)


@dataclass(frozen=True)
class SpeakerPatches:
    """Patches of some speakers: row numbers of the table, grouped by speaker."""

    table: FeatureTable
    speakers: tuple[Rows, ...]

    def pairs(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw two patches each of `count` speakers, (count, frames, bins) float32 twice.

        Speakers are different ones while there are enough.
        """
        total = len(self.speakers)
        chosen = generator.choice(total, count, replace=count > total)
        rows = [generator.choice(self.speakers[i], 2, replace=False) for i in chosen]
        first, second = np.array(rows, dtype=np.int64).T
        return self.table.gather(first), self.table.gather(second)

    @property
    def takes(self) -> int:
        """How many patches every speaker has."""
        return len(self.speakers[0])

    @property
    def rows(self) -> Rows:
        """All row numbers."""
        return tuple(row for rows in self.speakers for row in rows)


@dataclass(frozen=True)
class PublicSpeech:
    """A corpus in patches: what is trained on (`heard`: of which utterances), what is held out."""

    corpus: Corpus
    train: SpeakerPatches
    held_out: SpeakerPatches
    heard: tuple[Utterance, ...]


def divide_speakers(corpus: Corpus, seed: int) -> tuple[list[str], list[str]]:
    """Return the speakers to train on and those held out; the same seed gives the same.

    Raises:
        FedspkError: there are fewer than four.
    """
    names = sorted(corpus.speakers)
    if len(names) < _LEAST_SPEAKERS:
        raise FedspkError(
            f"{corpus.name}: has {len(names)} usable speakers; a generator needs "
            f"{_LEAST_SPEAKERS} or more."
        )
    order = numpy_generator(seed, "held out").permutation(len(names))
    count = max(1, round(HELD_OUT * len(names)))
    held_out = {names[i] for i in order[:count]}
    return [name for name in names if name not in held_out], sorted(held_out)


def public_speech(
    corpus: Corpus,
    front_end: FrontEndConfig,
    plan: PatchPlan,
    cache: FeatureCache,
    *,
    seed: int,
    workers: int = 1,
    held_out_speeds: tuple[float, ...] = (1.0,),
) -> PublicSpeech:
    """Return an examined corpus in patches, each speaker's speeds one after the other.

    Raises:
        FedspkError: it has too few speakers, or the cache cannot be written.
    """
    train, held_out = divide_speakers(corpus, seed)
    requests: list[FeatureRequest] = []
    groups: dict[bool, list[Rows]] = {True: [], False: []}
    for name in (*train, *held_out):
        is_train = name not in held_out
        for speed in plan.speeds if is_train else held_out_speeds:
            made = _requests(corpus.speakers[name], plan.patches, speed)
            groups[is_train].append(tuple(range(len(requests), len(requests) + len(made))))
            requests += made
    table = cache.features(corpus, requests, front_end, workers=workers, show_progress=True)
    return PublicSpeech(
        corpus,
        SpeakerPatches(table, tuple(groups[True])),
        SpeakerPatches(table, tuple(groups[False])),
        corpus.only(train).utterances,
    )


def _requests(utterances: tuple[Utterance, ...], count: int, speed: float) -> list[FeatureRequest]:
    """Return the patches of one speaker at one speed: utterances in turn, from anywhere in them."""
    made = []
    for number in range(max(2, count)):
        utterance = utterances[number % len(utterances)]
        generator = numpy_generator(utterance.id, "patch", number, str(speed))
        samples = max(1, int((utterance.seconds or 0.0) * SAMPLE_RATE / speed))
        start = int(generator.integers(samples))
        session = SessionSpec("training", derive(utterance.id, "patch", number, str(speed)))
        is_clean = generator.random() < _CLEAN
        made.append(FeatureRequest(utterance, None if is_clean else session, start, speed))
    return made
