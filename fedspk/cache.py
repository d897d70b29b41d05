"""The cache of decoded sound and of features: content-addressed, memory-mapped, shared.

`FeatureCache.features` turns requests (this utterance, recorded in that session, from this sample
on) into a `FeatureTable`; whatever an earlier run or another process has computed is reused. A
sound file is decoded once ever: its sound is found again by path, size and modification time, its
features by the hash of the decoded sound, the session, the start and the front end.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import platformdirs
import torch

from fedspk.audio import (
    AudioError,
    AudioFault,
    FloatArray,
    change_speed,
    check_speech,
    crop_or_repeat,
    trim_silence,
)
from fedspk.feature_table import FeatureTable
from fedspk.features import FrontEndConfig, build_front_end
from fedspk.packs import Place, drop_pack, is_intact, open_pack, read_index, write_pack
from fedspk.parallel import run_jobs
from fedspk.progress import progress
from fedspk.sessions import SessionSpec, apply_session

if TYPE_CHECKING:
    from fedspk.corpora.base import Corpus, SoundSource, Utterance

__all__ = ["FeatureCache", "FeatureRequest", "FeatureTable", "Sound"]

_VERSION = 1  # part of every feature's key: raise it when trimming or the order of steps changes
_POOL_SECONDS = 8.0  # less work than this is not worth starting worker processes
_JOB_SECONDS = 2.0  # what one job lasts at most: how long Ctrl-C may wait
_SECONDS_A_ROW = 0.006  # session and front end
_ROWS_A_JOB = 256  # a pack of 14 MB with the default front end

Item = TypeVar("Item")


@dataclass(frozen=True)
class FeatureRequest:
    """One example: an utterance, trimmed, cropped from sample `start`, heard through a session.

    `speed` other than 1 plays it faster or slower first, pitch and formants with it.
    """

    utterance: Utterance
    session: SessionSpec | None = None
    start: int = 0
    speed: float = 1.0

    def key(self, content: str) -> str:
        """Return the name of the example among those of one front end: 32 hexadecimal digits."""
        session = self.session.key() if self.session is not None else ""
        text = f"{_VERSION}\x1f{content}\x1f{session}\x1f{self.start}\x1f{self.speed}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Sound:
    """The verdict on one utterance, and where its decoded sound lies in a pack.

    `fault` is the reason to skip it, or None.
    """

    pack: Path
    offset: int
    samples: int
    scale: float
    content: str
    fault: AudioFault | None

    def read(self) -> FloatArray | None:
        """Return (samples,) float32 at 16 kHz, or None where the pack is damaged."""
        pcm = open_pack(self.pack)[self.offset : self.offset + self.samples]
        if _content_hash(pcm, self.scale) != self.content:
            return None
        return np.multiply(pcm, self.scale, dtype=np.float32)


class FeatureCache:
    """Decoded sound and features under one folder, safe to share between processes.

    `root` defaults to the environment's FEDSPK_CACHE, else to the user's cache folder. Everything
    in it can be deleted at any time while nothing runs.
    """

    def __init__(self, root: Path | None = None) -> None:
        chosen = root or os.environ.get("FEDSPK_CACHE") or platformdirs.user_cache_dir("fedspk")
        self.root = Path(chosen).expanduser().absolute()
        self._indexes: dict[Path, dict[str, Place]] = {}

    def sounds(
        self,
        source: SoundSource,
        utterances: Sequence[Utterance],
        *,
        workers: int = 1,
        show_progress: bool = False,
    ) -> list[Sound]:
        """Decode what has never been decoded; return the verdict on every utterance, in order.

        Raises:
            FedspkError: the cache cannot be written, for example because the disk is full.
        """
        folder = self.root / "audio"
        stamps = [_stamp(source, utterance) for utterance in utterances]
        missing = self._missing(folder, stamps)
        todo = [(stamps[i], utterances[i]) for i in missing]
        most = max(1, round(_JOB_SECONDS / source.seconds_each))
        jobs = [_DecodeJob(folder, source, part) for part in _parts(todo, most)]
        used = workers if len(todo) * source.seconds_each >= _POOL_SECONDS else 1
        with progress(
            total=len(todo), description="Decoding", unit="file", show=show_progress and bool(todo)
        ) as bar:
            for job, (pack, entries) in run_jobs(_decode, jobs, workers=used):
                self._add(folder, pack, entries)
                bar.update(len(job.items))
        index = self._index(folder)
        return [Sound(index[stamp].pack, *index[stamp].entry) for stamp in stamps]

    def features(
        self,
        corpus: Corpus,
        requests: Sequence[FeatureRequest],
        config: FrontEndConfig,
        *,
        workers: int = 1,
        show_progress: bool = False,
    ) -> FeatureTable:
        """Compute what is not in the cache; return one row per request, in order.

        Raises:
            AudioError: an utterance cannot be used (examine the corpus to leave such out).
            FedspkError: the cache cannot be written, for example because the disk is full.
        """
        folder = self.root / "features" / config.content_hash()
        utterances = list(
            {request.utterance.id: request.utterance for request in requests}.values()
        )
        found = self.sounds(corpus.source, utterances, workers=workers, show_progress=show_progress)
        sounds = {utterance.id: sound for utterance, sound in zip(utterances, found, strict=True)}
        for utterance in utterances:
            _refuse(utterance, sounds[utterance.id])
        keys = [request.key(sounds[request.utterance.id].content) for request in requests]
        missing = self._missing(folder, keys, verify=True)
        work = _by_utterance(requests, sounds, [(i, keys[i]) for i in missing])
        jobs = [
            _ExtractJob(folder, corpus.source, config, part)
            for part in _parts(work, _ROWS_A_JOB, size=lambda item: len(item.rows))
        ]
        used = workers if len(missing) * _SECONDS_A_ROW >= _POOL_SECONDS else 1
        with progress(
            total=len(missing),
            description="Extracting features",
            unit="clip",
            show=show_progress and bool(missing),
        ) as bar:
            for job, (pack, entries) in run_jobs(_extract, jobs, workers=used):
                self._add(folder, pack, entries)
                bar.update(sum(len(item.rows) for item in job.items))
        index = self._index(folder)
        return FeatureTable.of_places([(index[key].pack, int(index[key].entry)) for key in keys])

    def _missing(self, folder: Path, keys: Sequence[str], *, verify: bool = False) -> list[int]:
        """Positions of the first occurrence of every key that no intact pack holds."""
        self._refresh(folder)
        index = self._index(folder)
        if verify:
            for pack in {index[key].pack for key in keys if key in index}:
                if not is_intact(pack):
                    drop_pack(pack)
                    self._forget(folder, pack)
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        return sorted(position for key, position in first.items() if key not in index)

    def _index(self, folder: Path) -> dict[str, Place]:
        return self._indexes.setdefault(folder, {})

    def _refresh(self, folder: Path) -> None:
        """Take up the packs that other processes have written, and forget those that are gone."""
        index = self._index(folder)
        known = frozenset(place.pack for place in index.values())
        for pack in known:
            if not pack.with_suffix(".json").exists():
                self._forget(folder, pack)
        for pack, entries in read_index(folder, known=known).items():
            self._add(folder, pack, entries)

    def _add(self, folder: Path, pack: Path, entries: dict[str, Any]) -> None:
        self._index(folder).update({key: Place(pack, entry) for key, entry in entries.items()})

    def _forget(self, folder: Path, pack: Path) -> None:
        index = self._index(folder)
        for key in [key for key, place in index.items() if place.pack == pack]:
            del index[key]


@dataclass(frozen=True)
class _DecodeJob:
    folder: Path
    source: SoundSource
    items: list[tuple[str, Utterance]]


@dataclass(frozen=True)
class _ExtractItem:
    """One utterance and the rows that are wanted of it, by key."""

    utterance: Utterance
    sound: Sound
    rows: list[tuple[str, FeatureRequest]]


@dataclass(frozen=True)
class _ExtractJob:
    folder: Path
    source: SoundSource
    config: FrontEndConfig
    items: list[_ExtractItem]


def _decode(job: _DecodeJob) -> tuple[Path, dict[str, Any]]:
    """Decode and judge utterances into one pack of 16-bit samples."""
    pieces: list[np.ndarray[Any, np.dtype[np.int16]]] = [np.zeros(0, dtype=np.int16)]
    entries: dict[str, Any] = {}
    offset = 0
    for stamp, utterance in job.items:
        try:
            audio = job.source.read(utterance)
            check_speech(audio)
        except AudioError as error:
            entries[stamp] = (0, 0, 1.0, "", error.reason)
            continue
        pcm, scale = _as_pcm(audio)
        pieces.append(pcm)
        entries[stamp] = (offset, len(pcm), scale, _content_hash(pcm, scale), None)
        offset += len(pcm)
    return write_pack(job.folder, np.concatenate(pieces), entries), entries


@torch.inference_mode()
def _extract(job: _ExtractJob) -> tuple[Path, dict[str, Any]]:
    """Compute features into one pack of float16: (rows, frames, bins).

    float16 halves the disk and the memory that all workers share; normalised features lie within
    about +-10, where its rounding (1e-3 at most) is far below what any recording reproduces.
    """
    front_end = build_front_end(job.config)
    config = job.config
    count = sum(len(item.rows) for item in job.items)
    rows = np.empty((count, config.frames, config.bins), dtype=np.float16)
    entries: dict[str, Any] = {}
    for item in job.items:
        speech = trim_silence(_read(item.sound, job.source, item.utterance))
        for key, request in item.rows:
            played = change_speed(speech, request.speed)
            clip = crop_or_repeat(played, config.samples, request.start)
            if request.session is not None:
                clip = apply_session(clip, request.session)
            features = front_end(torch.from_numpy(np.ascontiguousarray(clip))[None])
            rows[len(entries)] = features[0].numpy()
            entries[key] = len(entries)
    return write_pack(job.folder, rows, entries), entries


def _read(sound: Sound, source: SoundSource, utterance: Utterance) -> FloatArray:
    """Return an utterance's sound from its pack, or from its source where the pack is damaged."""
    audio = sound.read()
    if audio is None:
        drop_pack(sound.pack)
        audio = source.read(utterance)
    return audio


def _as_pcm(audio: FloatArray) -> tuple[np.ndarray[Any, np.dtype[np.int16]], float]:
    """Return 16-bit samples and their unit: exact for 16-bit sources, else scaled to the peak."""
    scaled = audio * np.float32(32768.0)
    pcm = np.clip(np.rint(scaled), -32768, 32767).astype(np.int16)
    if np.array_equal(pcm.astype(np.float32), scaled):
        return pcm, 1.0 / 32768.0
    scale = float(np.abs(audio).max()) / 32767.0
    return np.rint(audio / np.float32(scale)).astype(np.int16), scale


def _content_hash(pcm: np.ndarray[Any, np.dtype[np.int16]], scale: float) -> str:
    digest = hashlib.blake2b(pcm.view(np.uint8).data, digest_size=16)
    digest.update(scale.hex().encode())
    return digest.hexdigest()


def _stamp(source: SoundSource, utterance: Utterance) -> str:
    """Return the name of an utterance among the decoded: 32 hexadecimal digits."""
    try:
        text = source.stamp(utterance)
    except AudioError as error:
        text = f"{utterance.id}\x1f{error}"
    return hashlib.blake2b(f"{_VERSION}\x1f{text}".encode(), digest_size=16).hexdigest()


def _refuse(utterance: Utterance, sound: Sound) -> None:
    if sound.fault:
        raise AudioError(
            f"{utterance.source or utterance.id}: cannot be used ({sound.fault}).",
            sound.fault,
        )


def _by_utterance(
    requests: Sequence[FeatureRequest],
    sounds: dict[str, Sound],
    wanted: Iterable[tuple[int, str]],
) -> list[_ExtractItem]:
    """Gather the wanted rows so that every utterance is read and trimmed once."""
    items: dict[str, _ExtractItem] = {}
    for position, key in wanted:
        request = requests[position]
        utterance = request.utterance
        item = items.setdefault(utterance.id, _ExtractItem(utterance, sounds[utterance.id], []))
        item.rows.append((key, request))
    return list(items.values())


def _parts(
    items: Sequence[Item], most: int, size: Callable[[Item], int] = lambda _: 1
) -> list[list[Item]]:
    """Cut a list into parts whose sizes sum to about `most`."""
    parts: list[list[Item]] = []
    filled = most
    for item in items:
        if filled >= most:
            parts.append([])
            filled = 0
        parts[-1].append(item)
        filled += size(item)
    return parts
