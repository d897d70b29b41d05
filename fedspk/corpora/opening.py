"""One door to every corpus: a name or a folder whose layout is recognised."""

from __future__ import annotations

from pathlib import Path

from fedspk.corpora import librispeech, voxceleb
from fedspk.corpora.base import Corpus
from fedspk.corpora.folder import open_folder, subfolders
from fedspk.corpora.synthetic import SyntheticConfig, synthetic_corpus
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
        return synthetic_corpus(_settings(settings), seed=seed)
    folder = Path(location).expanduser()
    subfolders(folder)
    found = voxceleb.open_voxceleb(folder) or librispeech.open_librispeech(folder)
    return found or open_folder(folder)


def _settings(text: str) -> SyntheticConfig:
    """Read "speakers=48,utterances=20"."""
    known = SyntheticConfig.__dataclass_fields__
    values: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name.strip() not in known or not value.strip().isdecimal():
            raise FedspkError(
                f"synthetic corpus: {item!r} is not understood; use whole numbers for "
                f"{', '.join(known)}, as in synthetic:speakers=48,utterances=20."
            )
        values[name.strip()] = int(value)
    return SyntheticConfig(**values)
