"""Which examples each part of the experiment uses: rows of one feature table.

Training, and validation too, hears every utterance through channels of the `training` condition;
enrolment and test utterances each get sessions of the `test` condition, which training never sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from clients.dataset import DeviceDataset, description_path
from clients.enrolment import enrol_simulated_fleet
from fedspk.audio import SAMPLE_RATE
from fedspk.cache import FeatureCache, FeatureRequest, FeatureTable
from fedspk.corpora import Corpus, Utterance
from fedspk.files import read_json, write_json
from fedspk.seeds import derive, numpy_generator
from fedspk.sessions import SessionSpec
from simulations.federated.cast import Cast, Owner, Utterances
from simulations.federated.config import ExperimentConfig

Rows = tuple[int, ...]

FEATURES = "features.json"
_TRIALS = "trials.json"
_VALIDATION_COPIES = 2
_VALIDATION_IMPOSTORS = 150  # of a device; more would take longer than the training itself
_OUTSIDER_UTTERANCES = 10


@dataclass(frozen=True)
class OwnerRows:
    """One owner's rows: training ones are grouped by utterance, test ones need no grouping."""

    speaker: str
    train: tuple[Rows, ...]
    validation: tuple[Rows, ...]
    enrolment: Rows
    enrolment_clean: Rows
    test: Rows
    test_clean: Rows


@dataclass(frozen=True)
class TrialRows:
    """What worker processes need to score a device: every owner's rows and the outsiders'."""

    owners: tuple[OwnerRows, ...]
    outsiders: Rows


@dataclass(frozen=True)
class LabelledRows:
    """Rows grouped by utterance, and the class (from 0) of each utterance."""

    utterances: tuple[Rows, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class PublicRows:
    """Public speech. Classes 0 .. `classes` - 1 are its speakers, times the speeds."""

    table: FeatureTable
    train: LabelledRows
    validation: LabelledRows
    classes: int


@dataclass(frozen=True)
class Plan:
    """All rows of one fold; one table holds them all."""

    owners: tuple[OwnerRows, ...]
    public: PublicRows
    outsiders: Rows


def make_plan(
    corpus: Corpus, cast: Cast, config: ExperimentConfig, cache: FeatureCache, workers: int
) -> Plan:
    """Choose the examples, compute what the cache does not hold, and return the rows."""
    builder = _Builder(config)
    owners = tuple(builder.owner(owner) for owner in cast.owners)
    train, validation = builder.public(cast.public_train, cast.public_validation)
    outsiders = tuple(
        row
        for name in sorted(cast.outsiders)
        for utterance in cast.outsiders[name][:_OUTSIDER_UTTERANCES]
        for row in builder.test_sessions(utterance, 1)
    )
    table = cache.features(
        corpus, builder.requests, config.front_end, workers=workers, show_progress=True
    )
    return Plan(owners, PublicRows(table, train, validation, _classes(cast, config)), outsiders)


def make_public_rows(
    corpus: Corpus, cast: Cast, config: ExperimentConfig, cache: FeatureCache, workers: int
) -> PublicRows:
    """Do the same for public speech alone."""
    builder = _Builder(config)
    train, validation = builder.public(cast.public_train, cast.public_validation)
    table = cache.features(
        corpus, builder.requests, config.front_end, workers=workers, show_progress=True
    )
    return PublicRows(table, train, validation, _classes(cast, config))


def _classes(cast: Cast, config: ExperimentConfig) -> int:
    return len(cast.public_train) * len(config.speeds)


@dataclass
class _Builder:
    """Collects requests; a row's number is its place in the list.

    Sessions depend on the utterance alone, not on the run's seed, so that runs with other seeds
    find their features in the cache.
    """

    config: ExperimentConfig
    requests: list[FeatureRequest] = field(default_factory=list)

    def owner(self, owner: Owner) -> OwnerRows:
        enrolment = [*owner.train, *owner.validation]
        return OwnerRows(
            speaker=owner.speaker,
            train=tuple(self.training(u, 1 + self.config.copies) for u in owner.train),
            validation=tuple(self.training(u, _VALIDATION_COPIES) for u in owner.validation),
            enrolment=tuple(row for u in enrolment for row in self.test_sessions(u, 1)),
            enrolment_clean=tuple(self.add(u, None) for u in enrolment),
            test=tuple(
                row for u in owner.test for row in self.test_sessions(u, self.config.test_sessions)
            ),
            test_clean=tuple(self.add(u, None) for u in owner.test),
        )

    def public(
        self, train: Mapping[str, Utterances], validation: Mapping[str, Utterances]
    ) -> tuple[LabelledRows, LabelledRows]:
        names = sorted(train)
        return (
            self.labelled(names, lambda name, speed: self.copies(train[name], speed)),
            self.labelled(
                names,
                lambda name, speed: self.held_back(validation.get(name, ()), train[name], speed),
            ),
        )

    def labelled(
        self, names: Sequence[str], rows_of: Callable[[str, float], Iterable[Rows]]
    ) -> LabelledRows:
        rows, labels = [], []
        for number, speed in enumerate(self.config.speeds):
            for label, name in enumerate(names):
                found = list(rows_of(name, speed))
                rows += found
                labels += [number * len(names) + label] * len(found)
        return LabelledRows(tuple(rows), tuple(labels))

    def copies(self, utterances: Utterances, speed: float) -> Iterator[Rows]:
        """Yield what a public speaker trains on."""
        for utterance in utterances:
            yield self.training(utterance, 1 + self.config.copies, speed)

    def held_back(self, validation: Utterances, train: Utterances, speed: float) -> Iterator[Rows]:
        """Yield what a public speaker validates on.

        A lone utterance trains, so another place of it through another channel has to do.
        """
        for utterance in validation:
            yield self.training(utterance, _VALIDATION_COPIES, speed)
        for utterance in () if validation else train:
            session = SessionSpec("training", derive(utterance.id, "held back"))
            start = int(numpy_generator(utterance.id, "held back").integers(_samples(utterance)))
            yield (self.add(utterance, session, start, speed),)

    def training(self, utterance: Utterance, copies: int, speed: float = 1.0) -> Rows:
        """Rows of one utterance: as recorded first, then through training channels."""
        starts = _starts(utterance, copies)
        sessions = [
            None if copy == 0 else SessionSpec("training", derive(utterance.id, "training", copy))
            for copy in range(copies)
        ]
        return tuple(
            self.add(utterance, session, start, speed)
            for session, start in zip(sessions, starts, strict=True)
        )

    def test_sessions(self, utterance: Utterance, count: int) -> Rows:
        return tuple(
            self.add(utterance, SessionSpec("test", derive(utterance.id, "test", number)))
            for number in range(count)
        )

    def add(
        self,
        utterance: Utterance,
        session: SessionSpec | None,
        start: int = 0,
        speed: float = 1.0,
    ) -> int:
        self.requests.append(FeatureRequest(utterance, session, start, speed))
        return len(self.requests) - 1


def _starts(utterance: Utterance, copies: int) -> list[int]:
    """First samples of an utterance's crops: 0, then anywhere; a crop wraps round at the end."""
    drawn = numpy_generator(utterance.id, "starts").integers(
        0, _samples(utterance), max(0, copies - 1)
    )
    return [0, *(int(start) for start in np.asarray(drawn))][:copies]


def _samples(utterance: Utterance) -> int:
    return max(1, int((utterance.seconds or 0.0) * SAMPLE_RATE))


def save_plan(plan: Plan, folder: Path, generator: Path | None = None) -> None:
    """Write what worker processes open: features, trial rows, one description a device.

    Every device gets an identity too, and the fleet a register; those that are there stay.
    `generator` is the impostor generator that every device has, if they need one.
    """
    plan.public.table.save(folder / FEATURES)
    trial_rows = TrialRows(plan.owners, plan.outsiders)
    write_json(folder / _TRIALS, asdict(trial_rows))
    train, validation = plan.public.train, _one_each(plan.public.validation)
    for index, owner in enumerate(plan.owners):
        dataset = DeviceDataset(
            device=f"device-{index:04d}",
            index=index,
            speaker=owner.speaker,
            features=Path("..") / FEATURES,
            folder=folder / "devices" / f"device-{index:04d}",
            owner_train=owner.train,
            owner_validation=owner.validation,
            impostors=train.utterances,
            impostor_labels=train.labels,
            validation_impostors=validation.utterances,
            validation_impostor_labels=validation.labels,
            generator=generator,
        )
        dataset.save(device_path(folder, index))
    devices = [device_path(folder, index) for index in range(len(plan.owners))]
    enrol_simulated_fleet(folder / "devices", [path.stem for path in devices])


def _one_each(data: LabelledRows) -> LabelledRows:
    """Return one clip a class, of some classes: what each device validates on, again and again."""
    chosen = dict(zip(data.labels, data.utterances, strict=True))
    labels = sorted(chosen)[:: -(-len(chosen) // _VALIDATION_IMPOSTORS) or 1]
    return LabelledRows(tuple((chosen[label][-1],) for label in labels), tuple(labels))


def device_path(folder: Path, index: int) -> Path:
    """Return the description of one device of a saved plan."""
    return description_path(folder / "devices", index)


@lru_cache(maxsize=2)
def open_trial_rows(folder: Path) -> TrialRows:
    """Read the trial rows of a saved plan."""
    content = read_json(folder / _TRIALS)
    owners = tuple(
        OwnerRows(**{name: _nested(value) for name, value in owner.items()})
        for owner in content["owners"]
    )
    return TrialRows(owners, tuple(content["outsiders"]))


def trials_fingerprint(folder: Path, corpus: str, config: ExperimentConfig) -> str:
    """Return a hash, in hex, of a saved plan's trials: other seeds or speakers make others.

    Args:
        folder: of the plan.
        corpus: the corpus's own fingerprint.
        config: of the experiment.
    """
    owners = open_trial_rows(folder).owners
    compared = [[owner.speaker, owner.enrolment, owner.test] for owner in owners]
    trials = json.dumps([corpus, config.seed, config.test_sessions, compared])
    return hashlib.sha256(trials.encode()).hexdigest()


def _nested(value: Any) -> Any:
    return tuple(_nested(item) for item in value) if isinstance(value, list) else value
