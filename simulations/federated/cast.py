"""Who plays whom: device owners, public speakers and outsiders, and each one's utterances.

- *owners*: one speaker a device; a test session (or utterance) never trains anything;
- *public speakers*: pre-training, shared classes and training impostors;
- *outsiders*: test impostors only, so that no model has ever trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from fedspk.cache import FeatureCache
from fedspk.corpora import Corpus, Utterance, examine, require_speakers, split_utterances
from fedspk.errors import FedspkError
from fedspk.seeds import derive, numpy_generator

Utterances = tuple[Utterance, ...]

MIN_OWNER_UTTERANCES = 5
_VALIDATION_FRACTION = 0.2
_OUTSIDER_FRACTION = 0.2
_MAX_OUTSIDERS = 25
_MIN_PUBLIC = 2
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


@dataclass(frozen=True)
class Cast:
    """Every speaker's part in one fold of the experiment."""

    owners: tuple[Owner, ...]
    public_train: Mapping[str, Utterances]
    public_validation: Mapping[str, Utterances]
    outsiders: Mapping[str, Utterances]


def choose_speakers(
    corpus: Corpus, devices: int, public_limit: int, seed: int, cache: FeatureCache, workers: int
) -> Corpus:
    """Return the examined part of `corpus` that the experiment uses.

    Only as many speakers as needed are decoded, whatever the size of the corpus.

    Raises:
        FedspkError: too few speakers have enough usable utterances.
    """
    owners = _owners(corpus, devices + _SPARE_OWNERS, seed)
    others = [name for name in _shuffled(corpus, seed) if name not in set(owners)]
    require_speakers(corpus, devices + _MIN_PUBLIC + 2, 1)
    chosen = owners + others[: public_limit + _MAX_OUTSIDERS]
    examined = examine(corpus.only(chosen), cache, workers=workers, show_progress=True)
    require_speakers(examined, devices + _MIN_PUBLIC + 2, 1)
    require_speakers(examined, devices, MIN_OWNER_UTTERANCES)
    return examined


def count_folds(corpus: Corpus, devices: int, seed: int) -> int:
    """Return 1, or 5 where an owner's single test set would be too small to mean anything."""
    fewest = min(len(corpus.speakers[name]) for name in _owners(corpus, devices, seed))
    return 1 if fewest >= _FEW_UTTERANCES else _FOLDS


def assign(
    corpus: Corpus, devices: int, public_limit: int, seed: int, fold: int, folds: int
) -> Cast:
    """Give every speaker of an examined corpus its part; the same seed gives the same cast.

    Args:
        corpus: examined corpus.
        devices: number of owners.
        public_limit: upper bound on public speakers.
        seed: run seed.
        fold: which of the `folds` disjoint test sets each owner uses.
        folds: 1 for one 80/20 split.

    Raises:
        FedspkError: an owner has too few utterances left to train and validate on.
    """
    owners = _owners(corpus, devices, seed)
    others = [name for name in _shuffled(corpus, seed) if name not in set(owners)]
    outsider_count = min(_MAX_OUTSIDERS, max(2, round(_OUTSIDER_FRACTION * len(others))))
    outsiders, public = others[:outsider_count], others[outsider_count:][:public_limit]
    return Cast(
        tuple(_owner(name, corpus, seed, fold, folds) for name in owners),
        *_held_out(corpus, public, seed),
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
    """Split off validation utterances; a lone utterance stays in training."""
    if len(utterances) < 2:
        return utterances, ()
    names = sorted(utterances, key=lambda utterance: utterance.id)
    order = numpy_generator(seed, "validation", names[0].speaker).permutation(len(names))
    count = max(1, round(_VALIDATION_FRACTION * len(names)))
    held = {names[i].id for i in order[:count]}
    return (
        tuple(u for u in names if u.id not in held),
        tuple(u for u in names if u.id in held),
    )


def _owners(corpus: Corpus, count: int, seed: int) -> list[str]:
    rich = (n for n in _shuffled(corpus, seed) if len(corpus.speakers[n]) >= MIN_OWNER_UTTERANCES)
    return list(islice(rich, count))


def _shuffled(corpus: Corpus, seed: int) -> list[str]:
    names = sorted(corpus.speakers)
    return [names[i] for i in numpy_generator(seed, "cast").permutation(len(names))]
