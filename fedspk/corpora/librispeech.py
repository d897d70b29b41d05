"""LibriSpeech: `<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac`; a chapter is a session.

Panayotov, Chen, Povey and Khudanpur, ICASSP 2015.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedspk.corpora.base import Corpus, Skipped
from fedspk.corpora.folder import collect, is_readable, subfolders

_NUMBER = re.compile(r"\d+")
_TRANSCRIPT = ".trans.txt"


def open_librispeech(location: Path) -> Corpus | None:
    """Read LibriSpeech at `location` or one level below (its subsets); None if it is not there."""
    below = [folder for folder in subfolders(location) if not _NUMBER.fullmatch(folder.name)]
    speakers = [
        (folder.name, folder)
        for part in [location, *filter(is_readable, below)]
        for folder in subfolders(part)
        if _is_speaker(folder)
    ]
    if not speakers:
        return None
    closed = [(folder.name, folder) for folder in below if not is_readable(folder)]
    utterances, skipped = collect(speakers + closed, _chapter)
    noted = tuple(each for each in skipped if not _belongs(each))
    return Corpus(location.absolute().name, utterances, noted) if utterances else None


def _is_speaker(folder: Path) -> bool:
    if not _NUMBER.fullmatch(folder.name):
        return False
    return not is_readable(folder) or any(
        next(chapter.glob(f"{folder.name}-{chapter.name}-*.*"), None) is not None
        for chapter in subfolders(folder)
        if _NUMBER.fullmatch(chapter.name)
    )


def _chapter(relative: Path) -> str | None:
    return relative.parts[0] if len(relative.parts) > 1 else None


def _belongs(skipped: Skipped) -> bool:
    """Transcripts are part of the layout, not something that was left out."""
    return skipped.id.endswith(_TRANSCRIPT)
