"""Where a device's impostors come from: other people's speech, invented voices, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from clients.dataset import DeviceDataset, Variants
from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig
from gan.invented import VALIDATION_TAKE, run_voices
from gan.sampling import InventedVoices

Choice = TypeVar("Choice")

VALIDATION_BATCH = 64
_TAKES = 1 << 31


class ImpostorSource(Protocol):
    """Draws impostors for training batches, and holds some back to validate with."""

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return features (count, frames, bins) float32 and public classes (count,) int64."""
        ...

    @property
    def held_back(self) -> int:
        """How many clips `validation` yields."""
        ...

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the impostors that training never draws, the same every time, in batches."""
        ...


class SpeechImpostors:
    """Utterances of public speakers: every speaker equally often, then every utterance.

    Raises:
        FedspkError: the device has none, or one is no public speaker of the run.
    """

    def __init__(self, dataset: DeviceDataset, public: int) -> None:
        if not dataset.impostors:
            raise FedspkError(
                f"{dataset.device}: has no impostors' speech, which the run asks for; give some or "
                "choose the impostors 'gan' or 'none'."
            )
        highest = max((*dataset.impostor_labels, *dataset.validation_impostor_labels))
        if highest >= public:
            raise FedspkError(
                f"{dataset.device}: an impostor is public speaker {highest} and the run's public "
                f"is {public}; set it to the number of public speakers."
            )
        self._table = dataset.table
        groups: dict[int, list[Variants]] = {}
        for variants, label in zip(dataset.impostors, dataset.impostor_labels, strict=True):
            groups.setdefault(label, []).append(variants)
        self._groups = [groups[label] for label in sorted(groups)]
        self._labels = np.array(sorted(groups), dtype=np.int64)
        pairs = zip(dataset.validation_impostors, dataset.validation_impostor_labels, strict=True)
        self._validation = [(row, label) for variants, label in pairs for row in variants]

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        speakers = generator.integers(len(self._groups), size=count)
        rows = [_pick(_pick(self._groups[speaker], generator), generator) for speaker in speakers]
        features = self._table.gather(np.array(rows, dtype=np.int64))
        return features, torch.from_numpy(self._labels[speakers])

    @property
    def held_back(self) -> int:
        return len(self._validation)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self._validation), VALIDATION_BATCH):
            rows, labels = zip(*self._validation[start : start + VALIDATION_BATCH], strict=True)
            yield self._table.gather(rows), torch.tensor(labels)


class InventedImpostors:
    """Voices that nobody has, drawn as they are needed: public class k is invented speaker k.

    All devices of a run have the same generator and so the same speakers; no two batches share an
    utterance.

    Raises:
        FedspkError: the device has no generator, another than the run's, or one for another front
            end.
    """

    def __init__(self, dataset: DeviceDataset, config: RunConfig) -> None:
        if dataset.generator is None:
            raise FedspkError(
                f"{dataset.device}: has no impostor generator; give one or choose the impostors "
                "'speech' or 'none'."
            )
        self._public = config.public
        self._voices = run_voices(dataset.generator, config)

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        speakers = generator.integers(self._public, size=count)
        takes = generator.integers(VALIDATION_TAKE + 1, _TAKES, size=count)
        return self._voices.patches(speakers.tolist(), takes.tolist()), torch.from_numpy(speakers)

    @property
    def held_back(self) -> int:
        return self._public

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        features = _held_back(self._voices, self._public)
        for start in range(0, self._public, VALIDATION_BATCH):
            batch = features[start : start + VALIDATION_BATCH].float()
            yield batch, torch.arange(start, start + len(batch))


def impostor_source(config: RunConfig, dataset: DeviceDataset) -> ImpostorSource | None:
    """Return the source that a run asks for; None means the owner's speech alone.

    Raises:
        FedspkError: the device has no such impostors, or they do not fit the run.
    """
    if config.impostors == "none":
        return None
    if config.impostors == "gan":
        return InventedImpostors(dataset, config)
    return SpeechImpostors(dataset, config.public)


@lru_cache(maxsize=2)
def _held_back(voices: InventedVoices, speakers: int) -> Tensor:
    """Return one patch of each speaker, (speakers, frames, bins) float16."""
    return voices.patches(range(speakers), [VALIDATION_TAKE] * speakers).half()


def _pick(choices: Sequence[Choice], generator: np.random.Generator) -> Choice:
    return choices[int(generator.integers(len(choices)))]
