"""Corpora on disk: a plain folder `speaker/utterance.*`, and the walk that all layouts share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fedspk.corpora.base import Corpus, Skipped, Utterance
from fedspk.errors import FedspkError

# What other tools call sound, whether libsndfile reads it or not: those are tried and counted.
_SOUND_ENDINGS = re.compile(
    r"\.(wave?|flac|og[ga]|opus|mp[34]|m4a|aac|wma|aiff?|aifc|au|snd|caf|w64|rf64|sph|nist|sf|voc)",
    re.IGNORECASE,
)


def open_folder(location: Path) -> Corpus:
    """Read `location/<speaker>/**/<utterance>.*`; what lies in no speaker's folder is ignored.

    Raises:
        FedspkError: no folder in `location` holds a sound file.
    """
    utterances, skipped = collect(
        [(folder.name, folder) for folder in subfolders(location)], lambda _: None
    )
    if not utterances:
        raise FedspkError(_nothing_there(location, skipped))
    return Corpus(location.absolute().name, utterances, skipped)


def collect(
    speakers: list[tuple[str, Path]], session_of: Callable[[Path], str | None]
) -> tuple[tuple[Utterance, ...], tuple[Skipped, ...]]:
    """List the sound files of every (speaker, folder), sorted by id.

    `session_of` maps a file's path below its speaker's folder to its session.
    """
    utterances: dict[str, Utterance] = {}
    skipped: list[Skipped] = []
    for speaker, folder in sorted(speakers):
        for path, reason in _walk(folder):
            relative = path.relative_to(folder)
            if reason:
                skipped.append(Skipped(_printable(f"{speaker}/{relative.as_posix()}"), reason))
                continue
            name = f"{speaker}/{relative.with_suffix('').as_posix()}"
            if name in utterances:  # the same name with two endings
                name = f"{speaker}/{relative.as_posix()}"
            utterances[name] = Utterance(name, speaker, session_of(relative), path)
    return tuple(utterances[name] for name in sorted(utterances)), tuple(skipped)


def subfolders(location: Path) -> list[Path]:
    """Return the folders in `location` that are not hidden, sorted by name.

    Raises:
        FedspkError: `location` is missing, is not a folder or cannot be read.
    """
    try:
        with os.scandir(location) as entries:
            return sorted(Path(e.path) for e in entries if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise FedspkError(
            f"{location}: cannot be read as a corpus ({error.strerror}); give a folder that holds "
            'one folder per speaker, or "synthetic".'
        ) from error


def is_readable(folder: Path) -> bool:
    """Say whether the folder's files can be listed."""
    try:
        os.scandir(folder).close()
    except OSError:
        return False
    return True


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below `folder` with the reason to skip it, or an empty text, in order."""
    unreadable: list[Path] = []
    for parent, folders, files in os.walk(
        folder, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        for name in sorted(folders):
            if name.startswith("."):
                folders.remove(name)
            elif _SOUND_ENDINGS.fullmatch(Path(name).suffix):
                folders.remove(name)
                yield Path(parent, name), "directory"
        folders.sort()
        for name in sorted(files):
            yield Path(parent, name), _reason_to_skip(Path(parent, name))
    for path in unreadable:
        yield path, "unreadable"


def _reason_to_skip(path: Path) -> str:
    if _printable(str(path)) != str(path):
        return "name is not UTF-8"
    if path.name.startswith("."):
        return "hidden file"
    if not _SOUND_ENDINGS.fullmatch(path.suffix):
        return "not audio"
    try:
        return "empty file" if path.stat().st_size == 0 else ""
    except OSError:
        return "unreadable"


def _printable(name: str) -> str:
    """Return a name with question marks for the bytes that are not UTF-8."""
    return name.encode(errors="replace").decode()


def _nothing_there(location: Path, skipped: tuple[Skipped, ...]) -> str:
    layout = "put each speaker's files into a folder of their own: speaker/utterance.wav"
    if any(_SOUND_ENDINGS.fullmatch(path.suffix) for path in location.iterdir() if path.is_file()):
        return f"{location}: holds sound files but no speakers' folders; {layout}."
    if skipped:
        return f"{location}: none of the {len(skipped)} files in its folders is sound; {layout}."
    return f"{location}: holds no sound files; {layout}."
