"""A user of the vault as the owner of a training device: features of his recordings.

Recordings and features are cut into crops that overlap by half. What is written holds a voice: give
it a folder in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from clients.dataset import DeviceDataset, Variants
from clients.vault import Vault
from fedspk.audio import FloatArray, crop_or_repeat, trim_silence
from fedspk.corpora import Utterance, open_corpus
from fedspk.errors import FedspkError
from fedspk.feature_table import FeatureTable
from fedspk.features import FrontEndConfig, build_front_end

_MOST_CROPS = 8
"""Of one recording: more of it would hardly teach more."""

_MOST_UTTERANCES = 10
"""Of one impostor."""

_HELD_OUT = 5  # every so manieth utterance validates


def write_dataset(
    vault: Vault,
    user: str,
    impostors: Path | None,
    front_end: FrontEndConfig,
    folder: Path,
    index: int = 0,
) -> Path:
    """Write a user's data for training and return the device's description.

    Args:
        vault: holds the recordings.
        user: who trains.
        impostors: a folder of other people's speech, a subfolder each, the same on all devices of
            a fleet: its speakers by name are the classes 0, 1, ... of the run. None: the device
            takes part in runs whose impostors are invented.
        front_end: of the model that is trained.
        folder: for description and features.
        index: the device's number in its fleet, where the run has a class for every device.

    Raises:
        UnknownUserError: nobody of this name is enrolled.
        FedspkError: there is no speech, of the user or in the folder.
    """
    recordings = vault.recordings(vault.user(user))
    rows = _Rows(front_end)
    owner = [rows.add(audio) for audio in recordings]
    if not any(owner):
        raise FedspkError(f"{user}: the enrolled recordings hold no speech.")
    train, validation = _divided([variants for variants in owner if variants])
    known: list[tuple[int, Variants]] = []
    unheard: list[tuple[int, Variants]] = []
    if impostors is not None:
        known, unheard = _others(impostors, rows)
    rows.save(folder)
    path = folder / "device.json"
    DeviceDataset(
        device=vault.device,
        index=index,
        speaker="owner",
        features=Path("features.json"),
        folder=path.with_suffix(""),
        owner_train=train,
        owner_validation=validation,
        impostors=tuple(variants for _, variants in known),
        impostor_labels=tuple(label for label, _ in known),
        validation_impostors=tuple(variants for _, variants in unheard),
        validation_impostor_labels=tuple(label for label, _ in unheard),
    ).save(path)
    return path


def _others(
    folder: Path, rows: _Rows
) -> tuple[list[tuple[int, Variants]], list[tuple[int, Variants]]]:
    """Add other people's speech; return what to train on and to validate on, with classes."""
    corpus = open_corpus(str(folder))
    known: list[tuple[int, Variants]] = []
    unheard: list[tuple[int, Variants]] = []
    for label, name in enumerate(sorted(corpus.speakers)):
        spoken: Iterable[Utterance] = corpus.speakers[name][:_MOST_UTTERANCES]
        clips = [rows.add(corpus.source.read(utterance)) for utterance in spoken]
        kept, held_out = _divided([variants for variants in clips if variants])
        known += [(label, variants) for variants in kept]
        unheard += [(label, variants) for variants in held_out]
    if not known:
        raise FedspkError(f"{folder}: holds no speech of others.")
    return known, unheard


@dataclass
class _Rows:
    """Features (frames, bins) as they come."""

    front_end: FrontEndConfig
    found: list[np.ndarray[tuple[int, ...], np.dtype[np.float16]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._network = build_front_end(self.front_end)

    @torch.inference_mode()
    def add(self, audio: FloatArray) -> Variants:
        """Add the crops of a recording and return their rows; none if it holds no speech."""
        speech, samples = trim_silence(audio), self.front_end.samples
        if not speech.size:
            return ()
        starts = range(0, max(1, len(speech) - samples + 1), samples // 2)[:_MOST_CROPS]
        crops = np.stack([crop_or_repeat(speech, samples, start) for start in starts])
        features = self._network(torch.from_numpy(crops)).numpy().astype(np.float16)
        first = len(self.found)
        self.found += list(features)
        return tuple(range(first, len(self.found)))

    def save(self, folder: Path) -> None:
        pack = folder / "features.npy"
        np.save(pack, np.stack(self.found))
        numbers = np.arange(len(self.found))
        FeatureTable([pack], np.zeros_like(numbers), numbers).save(folder / "features.json")


def _divided(clips: list[Variants]) -> tuple[tuple[Variants, ...], tuple[Variants, ...]]:
    """Divide utterances into those to train on and those to validate on; a lone one trains."""
    held_out = clips[_HELD_OUT - 1 :: _HELD_OUT] or clips[1:][-1:]
    return tuple(clip for clip in clips if clip not in held_out), tuple(held_out)
