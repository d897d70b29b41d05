"""Who plays whom: device owners, public speakers and outsiders, and each one's utterances.

- *owners*: one speaker a device; a test session (or utterance) never trains anything;
- *public speakers*: pre-training, shared classes and training impostors; perhaps of a corpus of
  their own;
- *outsiders*: test impostors only, so that no model has ever trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedspk.cache import FeatureCache
from fedspk.corpora import (
    Corpus,
    Utterance,
    examine,
    open_corpus,
    require_speakers,
    split_utterances,
)
from fedspk.corpora.base import Files
from fedspk.errors import FedspkError
from fedspk.seeds import derive, numpy_generator
from simulations.federated.config import ExperimentConfig

Utterances = tuple[Utterance, ...]

MIN_OWNER_UTTERANCES = 5
_VALIDATION_FRACTION = 0.2
_OUTSIDER_FRACTION = 0.2
_MAX_OUTSIDERS = 25
_MIN_PUBLIC = 2
_MIN_OUTSIDERS = 2
_SPARE_OWNERS = 5
_FEW_UTTERANCES = 10
_FOLDS = 5


@dataclass(frozen=True)
class Owner:
    """One device's owner: disjoint training, validation and test utterances."""

    speaker: str
    train: Utterances
    validation: Utterances
    test: Utterances

    @property
    def is_tested_on_new_sessions(self) -> bool:
        """Whether no test utterance is of a session that training or validation heard."""
        heard = {utterance.session for utterance in (*self.train, *self.validation)}
        tested = {utterance.session for utterance in self.test}
        return None not in heard | tested and not heard & tested


@dataclass(frozen=True)
class Cast:
    """Every speaker's part in one fold of the experiment."""

    owners: tuple[Owner, ...]
    public_train: Mapping[str, Utterances]
    public_validation: Mapping[str, Utterances]
    outsiders: Mapping[str, Utterances]

    @property
    def tested(self) -> Utterances:
        """Everything that no model may have been trained on."""
        owned = [utterance for owner in self.owners for utterance in owner.test]
        return (*owned, *(u for utterances in self.outsiders.values() for u in utterances))


def choose_speakers(
    corpus: Corpus, config: ExperimentConfig, cache: FeatureCache, workers: int
) -> Corpus:
    """Return the examined part of `corpus` that the experiment uses.

    Only as many speakers as needed are decoded, whatever the size of the corpus.

    Raises:
        FedspkError: too few speakers have enough usable utterances.
    """
    devices, seed = config.devices, config.seed
    least = devices + _MIN_OUTSIDERS + (0 if config.public_corpus else _MIN_PUBLIC)
    require_speakers(corpus, least, 1)
    owners = _owners(corpus, devices + _SPARE_OWNERS, seed)
    others = [name for name in _shuffled(corpus, seed) if name not in set(owners)]
    chosen = corpus.only([*owners, *others[: config.public_speakers + _MAX_OUTSIDERS]])
    kept = set(owners)
    few = [
        utterance
        for speaker, utterances in chosen.speakers.items()
        for utterance in (utterances if speaker in kept else utterances[: config.public_utterances])
    ]
    examined = examine(
        replace(chosen, utterances=tuple(few)), cache, workers=workers, show_progress=True
    )
    require_speakers(examined, least, 1)
    require_speakers(examined, devices, MIN_OWNER_UTTERANCES)
    return examined


def count_folds(corpus: Corpus, devices: int, seed: int) -> int:
    """Return 1, or 5 where an owner's single test set would be too small to mean anything."""
    owners = [corpus.speakers[name] for name in _owners(corpus, devices, seed)]
    if min(len(utterances) for utterances in owners) >= _FEW_UTTERANCES:
        return 1
    sessions = min(len({u.session for u in utterances} - {None}) for utterances in owners)
    return min(_FOLDS, sessions) if sessions >= 2 else _FOLDS


def choose_public(config: ExperimentConfig, cache: FeatureCache, workers: int) -> Corpus | None:
    """Return the examined part of the public speakers' own corpus; None if they have none.

    Raises:
        FedspkError: the corpus holds no speech.
    """
    if not config.public_corpus:
        return None
    corpus = open_corpus(config.public_corpus)
    chosen = corpus.only(_shuffled(corpus, config.seed)[: config.public_speakers])
    few = [u for each in chosen.speakers.values() for u in each[: config.public_utterances]]
    examined = examine(
        replace(chosen, utterances=tuple(few)), cache, workers=workers, show_progress=True
    )
    require_speakers(examined, _MIN_PUBLIC, 1)
    return examined


def joined(corpus: Corpus, public: Corpus | None) -> Corpus:
    """Return both corpora as one, whose features one table can hold.

    Raises:
        FedspkError: a speaker is in both, or one of them is not made of files.
    """
    if public is None:
        return corpus
    if common := set(corpus.speakers) & set(public.speakers):
        raise FedspkError(
            f"{public.name}: its speaker {min(common)} is in {corpus.name}, too; public speakers "
            "must be others than the owners."
        )
    if not (isinstance(corpus.source, Files) and isinstance(public.source, Files)):
        raise FedspkError("--public-corpus needs two folders of files; give --corpus FOLDER, too.")
    return replace(
        corpus,
        utterances=corpus.utterances + public.utterances,
        skipped=corpus.skipped + public.skipped,
    )


def assign(
    corpus: Corpus, config: ExperimentConfig, fold: int = 0, public: Corpus | None = None
) -> Cast:
    """Give every speaker of an examined corpus its part; the same seed gives the same cast.

    Args:
        corpus: examined corpus.
        config: its `folds` has been decided.
        fold: which of the disjoint test sets each owner uses.
        public: the public speakers' own examined corpus, if they have one.

    Raises:
        FedspkError: an owner has too few utterances left to train and validate on.
    """
    seed, folds = config.seed, config.folds
    owners = _owners(corpus, config.devices, seed)
    others = [name for name in _shuffled(corpus, seed) if name not in set(owners)]
    outsider_count = min(
        _MAX_OUTSIDERS, max(_MIN_OUTSIDERS, round(_OUTSIDER_FRACTION * len(others)))
    )
    outsiders, rest = others[:outsider_count], others[outsider_count:]
    heard = public or corpus.only(rest[: config.public_speakers])
    return Cast(
        tuple(_owner(name, corpus, seed, fold, folds) for name in owners),
        *_held_out(heard, sorted(heard.speakers), seed),
        outsiders={name: corpus.speakers[name] for name in outsiders},
    )


def all_public(corpus: Corpus, seed: int) -> Cast:
    """Make every speaker a public one."""
    return Cast((), *_held_out(corpus, sorted(corpus.speakers), seed), outsiders={})


def _held_out(
    corpus: Corpus, names: list[str], seed: int
) -> tuple[dict[str, Utterances], dict[str, Utterances]]:
    parts = {name: _hold_out(corpus.speakers[name], seed) for name in names}
    return (
        {name: kept for name, (kept, _) in parts.items()},
        {name: held for name, (_, held) in parts.items() if held},
    )


def _owner(name: str, corpus: Corpus, seed: int, fold: int, folds: int) -> Owner:
    rest, test = split_utterances(
        corpus.speakers[name], seed=derive(seed, "split", name), fold=fold, folds=folds
    )
    train, validation = _hold_out(rest, seed)
    if not (train and validation and test):
        raise FedspkError(
            f"speaker {name}: {len(corpus.speakers[name])} usable utterances cannot be split into "
            "training, validation and test; add recordings or leave the speaker out."
        )
    return Owner(name, train, validation, test)


def _hold_out(utterances: Utterances, seed: int) -> tuple[Utterances, Utterances]:
    """Split off validation utterances, whole sessions of them where sessions are known.

    A lone utterance stays in training.
    """
    if len(utterances) < 2:
        return utterances, ()
    return split_utterances(
        utterances,
        test_fraction=_VALIDATION_FRACTION,
        seed=derive(seed, "validation", utterances[0].speaker),
    )


def _owners(corpus: Corpus, count: int, seed: int) -> list[str]:
    """Choose speakers with enough speech, those with two or more sessions before the others."""
    shuffled = _shuffled(corpus, seed)
    rich = [name for name in shuffled if len(corpus.speakers[name]) >= MIN_OWNER_UTTERANCES]
    return sorted(rich, key=lambda name: not _has_sessions(corpus.speakers[name]))[:count]


def _has_sessions(utterances: Utterances) -> bool:
    sessions = {utterance.session for utterance in utterances}
    return None not in sessions and len(sessions) >= 2


def _shuffled(corpus: Corpus, seed: int) -> list[str]:
    names = sorted(corpus.speakers)
    return [names[i] for i in numpy_generator(seed, "cast").permutation(len(names))]
