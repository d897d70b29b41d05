"""Listen to a whole corpus once: what cannot be used is left out, with the reason."""

from __future__ import annotations

from dataclasses import replace

from fedspk.audio import SAMPLE_RATE
from fedspk.cache import FeatureCache
from fedspk.corpora.base import Corpus, Skipped


def examine(
    corpus: Corpus, cache: FeatureCache, *, workers: int = 1, show_progress: bool = False
) -> Corpus:
    """Return the corpus with lengths and content hashes, without what is broken.

    Unreadable, damaged, silent and too short utterances move to `skipped`. Sound that `cache` has
    seen before is not decoded again.

    Raises:
        FedspkError: the cache cannot be written.
    """
    sounds = cache.sounds(
        corpus.source, corpus.utterances, workers=workers, show_progress=show_progress
    )
    judged = list(zip(corpus.utterances, sounds, strict=True))
    return replace(
        corpus,
        utterances=tuple(
            replace(utterance, seconds=sound.samples / SAMPLE_RATE, content=sound.content)
            for utterance, sound in judged
            if not sound.fault
        ),
        skipped=(
            *corpus.skipped,
            *(Skipped(utterance.id, sound.fault) for utterance, sound in judged if sound.fault),
        ),
    )
