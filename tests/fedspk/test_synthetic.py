"""Made voices: the same from the same seed, different from each other, and like speech."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from fedspk.audio import SAMPLE_RATE, check_speech, trim_silence
from fedspk.corpora import Corpus, open_corpus
from fedspk.errors import FedspkError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return open_corpus("synthetic:speakers=3,utterances=4,sessions=2", seed=5)


def test_default_corpus_has_sessions() -> None:
    corpus = open_corpus("synthetic")
    assert len(corpus.speakers) == 48
    assert {len(each) for each in corpus.speakers.values()} == {20}
    assert corpus.has_sessions
    assert len({u.session for u in corpus.speakers["voice00007"]}) == 4


def test_same_seed_makes_the_same_bytes_everywhere(corpus: Corpus) -> None:
    audio = corpus.load(corpus.utterances[0])
    assert audio.dtype == np.float32
    np.testing.assert_array_equal(audio * 32768, np.rint(audio * 32768))
    digest = hashlib.sha256((audio * 32768).astype("<i2").tobytes()).hexdigest()
    assert digest[:16] == "b44ac40ea124f072"


def test_speaker_does_not_depend_on_the_corpus_size(corpus: Corpus) -> None:
    larger = open_corpus("synthetic:speakers=9,utterances=8,sessions=2", seed=5)
    utterance = corpus.speakers["voice00002"][0]
    same = next(each for each in larger.utterances if each.id == utterance.id)
    np.testing.assert_array_equal(corpus.load(utterance), larger.load(same))


def test_other_seed_makes_other_voices(corpus: Corpus) -> None:
    other = open_corpus("synthetic:speakers=3,utterances=4,sessions=2", seed=6)
    first, second = corpus.load(corpus.utterances[0]), other.load(other.utterances[0])
    assert len(first) != len(second) or not np.array_equal(first, second)


def test_voices_are_accepted_as_speech_with_pauses(corpus: Corpus) -> None:
    for utterance in corpus.utterances:
        audio = corpus.load(utterance)
        check_speech(audio)
        assert 2.2 < len(audio) / SAMPLE_RATE < 7.0
        assert 0.5 < len(trim_silence(audio)) / len(audio) <= 1.0
        assert 0.05 < np.abs(audio).max() <= 1.0


def test_speech_is_voiced_and_falls_towards_high_frequencies(corpus: Corpus) -> None:
    audio = np.concatenate([corpus.load(each) for each in corpus.utterances])
    power = np.abs(np.fft.rfft(audio)) ** 2
    hertz = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    low = power[(hertz > 80) & (hertz < 1000)].sum()
    high = power[hertz > 4000].sum()
    assert low > 3 * high


@pytest.mark.parametrize(
    "settings", ["speakers", "voices=3", "speakers=-1", "speakers=0", "utterances=2", "sessions=x"]
)
def test_wrong_settings_are_one_clear_error(settings: str) -> None:
    with pytest.raises(FedspkError, match="synthetic corpus"):
        open_corpus(f"synthetic:{settings}")
