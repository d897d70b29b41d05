"""One door to every corpus: a name or a folder whose layout is recognised."""

from __future__ import annotations

from pathlib import Path

from fedspk.corpora import librispeech, voxceleb
from fedspk.corpora.base import Corpus
from fedspk.corpora.folder import open_folder, subfolders
from fedspk.errors import FedspkError


def open_corpus(location: str | Path, *, seed: int = 0) -> Corpus:
    """List a corpus without decoding it.

    `location` is "synthetic", "synthetic:speakers=48,utterances=20", or a folder: VoxCeleb
    (`wav/id10001/<video>/<utterance>.wav`), LibriSpeech (`<speaker>/<chapter>/*.flac`) or plain
    (`<speaker>/<utterance>.*`). `seed` chooses the synthetic voices.

    Raises:
        FedspkError: the folder is missing or holds no speakers, or a synthetic setting is wrong.
    """
    kind, colon, settings = str(location).partition(":")
    if kind == "synthetic" and (colon or not Path(kind).is_dir()):
        raise FedspkError(f"the synthetic corpus is not there yet {settings} {seed}")
    folder = Path(location).expanduser()
    subfolders(folder)
    found = voxceleb.open_voxceleb(folder) or librispeech.open_librispeech(folder)
    return found or open_folder(folder)
