"""What other processes do with a feature cache in tests: importable by its name alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedspk.cache import FeatureCache, FeatureRequest
from fedspk.corpora import Corpus
from fedspk.features import FrontEndConfig
from fedspk.sessions import SessionSpec

CONFIG = FrontEndConfig(frames=50)


def requests(corpus: Corpus) -> list[FeatureRequest]:
    """Every utterance in three sessions, from two starts."""
    sessions = [None, SessionSpec("training", 1), SessionSpec("test", 2)]
    return [
        FeatureRequest(utterance, session, start)
        for utterance in corpus.utterances
        for session in sessions
        for start in (0, 3000)
    ]


def rows(corpus: Corpus, root: Path) -> np.ndarray:
    table = FeatureCache(root).features(corpus, requests(corpus), CONFIG)
    return table.gather(range(len(table))).numpy()
