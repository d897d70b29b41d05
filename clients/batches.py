"""Training batches of one device: some clips of the owner, the rest impostors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from clients.dataset import DeviceDataset, Variants
from clients.impostors import ImpostorSource
from fedspk.errors import FedspkError
from fedspk.seeds import derive


class DeviceBatches:
    """The `BatchSource` of a device.

    The owner's utterances come in random order, each once before any comes again, in a random
    variant.

    Args:
        dataset: the device's data.
        owner_label: the class of the owner.
        impostors: None fills the batch with the owner's clips.
        owner_fraction: the owner's share of a batch, at least one clip.
        crop_frames: length of a random crop of each clip; None takes the clip whole.
    """

    def __init__(
        self,
        dataset: DeviceDataset,
        owner_label: int,
        impostors: ImpostorSource | None,
        *,
        owner_fraction: float,
        crop_frames: int | None = None,
    ) -> None:
        self._dataset = dataset
        self._owner_label = owner_label
        self._impostors = impostors
        self._owner_fraction = owner_fraction if impostors is not None else 1.0
        self._crop_frames = crop_frames

    def owner_count(self, batch_size: int) -> int:
        """Return how many clips of a batch are the owner's."""
        return min(batch_size, max(1, round(batch_size * self._owner_fraction)))

    def batches(self, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (B, T, F) float32 and labels (B,) int64 without end, drawn by `seed`."""
        generator = np.random.default_rng(derive(seed, "batches"))
        owners = self.owner_count(batch_size)
        order = _endless(self._dataset.owner_train, generator)
        table = self._dataset.table
        while True:
            clips = [next(order) for _ in range(owners)]
            rows = [variants[generator.integers(len(variants))] for variants in clips]
            features = table.gather(np.array(rows, dtype=np.int64))
            labels = torch.full((owners,), self._owner_label, dtype=torch.int64)
            if self._impostors is not None and owners < batch_size:
                others, classes = self._impostors.draw(batch_size - owners, generator)
                features = torch.cat([features, others])
                labels = torch.cat([labels, classes])
            yield random_crops(features, self._crop_frames, generator), labels


def random_crops(features: Tensor, length: int | None, generator: np.random.Generator) -> Tensor:
    """Cut (B, length, F) out of features (B, T, F), each clip at its own place; None: all of it.

    Raises:
        FedspkError: `length` is more than the clips have.
    """
    count, frames, _ = features.shape
    if length is None or length == frames:
        return features
    if length > frames:
        raise FedspkError(f"crop_frames is {length} and a clip has {frames}; choose fewer.")
    starts = torch.from_numpy(generator.integers(frames - length + 1, size=count))
    positions = starts.unsqueeze(1) + torch.arange(length)  # (B, length)
    return features[torch.arange(count).unsqueeze(1), positions]


def _endless(
    utterances: tuple[Variants, ...], generator: np.random.Generator
) -> Iterator[Variants]:
    while True:
        for index in generator.permutation(len(utterances)):
            yield utterances[index]
