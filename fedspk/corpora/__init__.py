"""Corpora: speakers, their utterances and sessions, from VoxCeleb, LibriSpeech, folders or made.

`open_corpus` lists one, `examine` decodes it once and leaves out what is broken, and
`split_utterances` divides a speaker's utterances into training and test.
"""

from fedspk.corpora.base import Corpus, Skipped, SoundSource, Utterance, require_speakers
from fedspk.corpora.examine import examine
from fedspk.corpora.opening import open_corpus
from fedspk.corpora.splits import split_utterances

__all__ = [
    "Corpus",
    "Skipped",
    "SoundSource",
    "Utterance",
    "examine",
    "open_corpus",
    "require_speakers",
    "split_utterances",
]
