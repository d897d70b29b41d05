"""What a corpus is: speakers, their utterances, where the sound comes from, what was left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from fedspk.audio import AudioError, FloatArray, load_audio
from fedspk.errors import FedspkError


@dataclass(frozen=True)
class Utterance:
    """One recording of one speaker.

    `id` is unique in its corpus and stable: "<speaker>/<path below the speaker without ending>".
    `source` is the file, or None where the sound is made. `seconds` and `content` (the hash of
    the decoded sound) are known once the corpus has been examined.
    """

    id: str
    speaker: str
    session: str | None = None
    source: Path | None = None
    seconds: float | None = None
    content: str = ""

    @property
    def mark(self) -> str:
        """What models remember of an utterance that they were trained on: 64 bits of its hash."""
        return self.content[:16]


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and the short reason that reports count."""

    id: str
    reason: str


class SoundSource(Protocol):
    """Where a corpus's sound comes from; picklable, so that worker processes can read it.

    `seconds_each` is about how long one utterance takes to read.
    """

    @property
    def seconds_each(self) -> float: ...

    def read(self, utterance: Utterance) -> FloatArray:
        """Return (samples,) float32 at 16 kHz; raises AudioError."""
        ...

    def stamp(self, utterance: Utterance) -> str:
        """Return a text that changes whenever the sound may have changed; reads no sound."""
        ...


@dataclass(frozen=True)
class Files:
    """Sound from files."""

    seconds_each = 0.003

    def read(self, utterance: Utterance) -> FloatArray:
        return load_audio(_file_of(utterance))

    def stamp(self, utterance: Utterance) -> str:
        path = _file_of(utterance)
        try:
            status = path.stat()
        except OSError as error:
            raise AudioError(f"{path}: cannot be read ({error.strerror}).", "unreadable") from error
        return f"file\x1f{path.absolute()}\x1f{status.st_size}\x1f{status.st_mtime_ns}"


@dataclass(frozen=True)
class Corpus:
    """Speakers and their utterances, in an order that depends on their names only."""

    name: str
    utterances: tuple[Utterance, ...]
    skipped: tuple[Skipped, ...] = ()
    source: SoundSource = Files()

    @cached_property
    def speakers(self) -> Mapping[str, tuple[Utterance, ...]]:
        """The utterances of every speaker, by name."""
        grouped: dict[str, list[Utterance]] = {}
        for utterance in self.utterances:
            grouped.setdefault(utterance.speaker, []).append(utterance)
        return {speaker: tuple(grouped[speaker]) for speaker in sorted(grouped)}

    @cached_property
    def fingerprint(self) -> str:
        """The hash of all ids and, once examined, of all decoded sound: 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        for utterance in self.utterances:
            digest.update(f"{utterance.id}\x1f{utterance.content}\x1e".encode())
        return digest.hexdigest()

    @property
    def has_sessions(self) -> bool:
        """Whether every utterance says in which session it was recorded."""
        return all(utterance.session is not None for utterance in self.utterances)

    @property
    def skip_reasons(self) -> dict[str, int]:
        """How many files were left out for which reason, most frequent first."""
        return dict(Counter(skipped.reason for skipped in self.skipped).most_common())

    def load(self, utterance: Utterance) -> FloatArray:
        """Decode one utterance: (samples,) float32 at 16 kHz; raises AudioError."""
        return self.source.read(utterance)

    def only(self, speakers: Iterable[str]) -> Corpus:
        """Return the part of the corpus that these speakers make up."""
        wanted = set(speakers)
        kept = tuple(u for u in self.utterances if u.speaker in wanted)
        return replace(self, utterances=kept)


def require_speakers(corpus: Corpus, speakers: int, utterances_each: int) -> None:
    """Check that the corpus is large enough.

    Raises:
        FedspkError: fewer than `speakers` speakers have `utterances_each` usable utterances.
    """
    enough = sum(len(each) >= utterances_each for each in corpus.speakers.values())
    if enough >= speakers:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in corpus.skip_reasons.items())
    left_out = f" ({len(corpus.skipped)} files were skipped: {reasons})" if reasons else ""
    raise FedspkError(
        f"{corpus.name}: {enough} of its {len(corpus.speakers)} speakers have at least "
        f"{utterances_each} usable utterances, but {speakers} are needed{left_out}; "
        "ask for fewer devices or give a larger corpus."
    )


def _file_of(utterance: Utterance) -> Path:
    if utterance.source is None:
        raise AudioError(f"{utterance.id}: has no file to read.", "unreadable")
    return utterance.source
