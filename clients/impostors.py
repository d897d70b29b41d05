"""Where a device's impostors come from: other people's speech, or nowhere.

A generator of invented voices plugs in here as another `ImpostorSource`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from clients.dataset import DeviceDataset, Variants
from fedspk.errors import FedspkError
from fedspk.rounds import ImpostorKind

Choice = TypeVar("Choice")


class ImpostorSource(Protocol):
    """Draws impostors for training batches."""

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return features (count, frames, bins) float32 and public classes (count,) int64."""
        ...


class SpeechImpostors:
    """Utterances of public speakers: every speaker equally often, then every utterance.

    Raises:
        FedspkError: the device has none.
    """

    def __init__(self, dataset: DeviceDataset) -> None:
        if not dataset.impostors:
            raise FedspkError(
                f"{dataset.device}: has no impostors; give some or choose the impostors 'none'."
            )
        self._table = dataset.table
        groups: dict[int, list[Variants]] = {}
        for variants, label in zip(dataset.impostors, dataset.impostor_labels, strict=True):
            groups.setdefault(label, []).append(variants)
        self._groups = [groups[label] for label in sorted(groups)]
        self._labels = np.array(sorted(groups), dtype=np.int64)

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        speakers = generator.integers(len(self._groups), size=count)
        rows = [_pick(_pick(self._groups[speaker], generator), generator) for speaker in speakers]
        features = self._table.gather(np.array(rows, dtype=np.int64))
        return features, torch.from_numpy(self._labels[speakers])


def impostor_source(kind: ImpostorKind, dataset: DeviceDataset) -> ImpostorSource | None:
    """Return the source that a run asks for; None means the owner's speech alone.

    Raises:
        FedspkError: the device has no impostors, or the kind needs a generator.
    """
    require_impostors(kind)
    return None if kind == "none" else SpeechImpostors(dataset)


def require_impostors(kind: ImpostorKind) -> None:
    """Check, before anything long begins, that this kind of impostors can be had.

    Raises:
        FedspkError: it needs a generator and there is none.
    """
    if kind == "gan":
        raise FedspkError(
            "No impostor generator is available for the impostors 'gan'; choose 'speech' or 'none'."
        )


def _pick(choices: Sequence[Choice], generator: np.random.Generator) -> Choice:
    return choices[int(generator.integers(len(choices)))]
