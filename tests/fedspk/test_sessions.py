"""What a simulated session may and may not do to a voice."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from fedspk.sessions import Condition, SessionSpec, apply_session

CONDITIONS: tuple[Condition, ...] = get_args(Condition)


def voice(samples: int = 24_000, seed: int = 0) -> np.ndarray:
    """Return pulses of shaped noise that come and go like syllables: (samples,) float32."""
    rng = np.random.default_rng(seed)
    envelope = np.clip(np.sin(np.arange(samples) / 1500), 0, None)
    return (0.1 * envelope * np.cumsum(rng.standard_normal(samples)) / 50).astype(np.float32)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("samples", [1, 160, 16_001, 56_000])
def test_session_keeps_length_type_and_range(condition: Condition, samples: int) -> None:
    for seed in range(8):  # every kind of noise and codec
        heard = apply_session(voice(samples), SessionSpec(condition, seed))
        assert heard.shape == (samples,)
        assert heard.dtype == np.float32
        assert np.all(np.isfinite(heard))
        assert np.max(np.abs(heard)) <= 1


@pytest.mark.parametrize("condition", CONDITIONS)
def test_same_seed_sounds_the_same_and_another_seed_does_not(condition: Condition) -> None:
    audio = voice()
    before = audio.copy()
    first = apply_session(audio, SessionSpec(condition, 1))
    assert np.array_equal(first, apply_session(audio, SessionSpec(condition, 1)))
    assert not np.array_equal(first, apply_session(audio, SessionSpec(condition, 2)))
    assert np.array_equal(audio, before)


def test_conditions_with_one_seed_are_different_sessions() -> None:
    audio = voice()
    training, test = (apply_session(audio, SessionSpec(name, 5)) for name in CONDITIONS)
    assert np.abs(np.corrcoef(training, test)[0, 1]) < 0.99
    assert SessionSpec("training", 5).key() != SessionSpec("test", 5).key()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("samples", [0, 16_000])
def test_nothing_to_hear_is_no_error(condition: Condition, samples: int) -> None:
    heard = apply_session(np.zeros(samples, np.float32), SessionSpec(condition, 0))
    assert heard.shape == (samples,)
    assert np.max(np.abs(heard), initial=0) < 1e-2


@pytest.mark.parametrize("condition", CONDITIONS)
def test_voice_stays_recognisable_in_its_envelope(condition: Condition) -> None:
    audio = voice(56_000)
    loudness = np.square(audio).reshape(-1, 400).mean(1)
    for seed in range(12):
        heard = apply_session(audio, SessionSpec(condition, seed))
        correlation = np.corrcoef(loudness, np.square(heard).reshape(-1, 400).mean(1))[0, 1]
        assert correlation > 0.3


def test_test_sessions_are_narrower_than_training_sessions() -> None:
    audio = np.random.default_rng(0).standard_normal(56_000).astype(np.float32) * 0.1

    def high_band_share(condition: Condition) -> float:
        spectra = [
            np.abs(np.fft.rfft(apply_session(audio, SessionSpec(condition, seed)))) ** 2
            for seed in range(6)
        ]
        mean = np.mean(spectra, axis=0)
        return float(mean[-mean.size // 16 :].sum() / mean.sum())

    assert high_band_share("test") < high_band_share("training") / 3
