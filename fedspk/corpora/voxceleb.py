"""VoxCeleb 1 and 2: `wav/id10001/<video>/<utterance>.wav`; a video is a session.

Nagrani, Chung and Zisserman, Interspeech 2017; Chung, Nagrani and Zisserman, Interspeech 2018.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedspk.corpora.base import Corpus
from fedspk.corpora.folder import collect, is_readable, subfolders

_SPEAKER = re.compile(r"id\d{5}")


def open_voxceleb(location: Path) -> Corpus | None:
    """Read VoxCeleb at `location`, at its `wav` or at its parts' `wav`; None if it is not there."""
    below = [folder for folder in subfolders(location) if not _SPEAKER.fullmatch(folder.name)]
    inner = [part / "wav" for part in filter(is_readable, below) if (part / "wav").is_dir()]
    parts = [location, *filter(is_readable, [*below, *inner])]
    speakers = [
        (folder.name, folder)
        for part in parts
        for folder in subfolders(part)
        if _SPEAKER.fullmatch(folder.name)
    ]
    if not speakers:
        return None
    closed = [(part.name, part) for part in [*below, *inner] if not is_readable(part)]
    utterances, skipped = collect(speakers + closed, _video)
    return Corpus(location.absolute().name, utterances, skipped) if utterances else None


def _video(relative: Path) -> str | None:
    return relative.parts[0] if len(relative.parts) > 1 else None
