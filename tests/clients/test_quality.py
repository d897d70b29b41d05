"""What is said of a recording that is too short, silent, clipped or noisy."""

from __future__ import annotations

import numpy as np
import pytest
from sounds import REAL_SPEECH, needs_real_speech, noise, silence
from toy_device import voice

from clients.quality import measure
from fedspk.audio import FloatArray, load_audio, trim_silence, voice_activity


def only_fault(audio: FloatArray) -> str:
    (fault,) = measure(audio).faults
    return fault


def test_a_good_recording_has_no_fault_and_its_measures() -> None:
    quality = measure(voice(0, 0, seconds=3.0))
    assert quality.faults == ()
    assert quality.seconds == pytest.approx(3.0)
    assert 2.0 < quality.speech_s <= 3.0
    assert quality.clipped == 0
    assert quality.snr_db == pytest.approx(40, abs=3)


@pytest.mark.parametrize("audio", [silence(3.0), 1e-5 * noise(3.0)], ids=["zeros", "hiss"])
def test_silence_is_told(audio: FloatArray) -> None:
    assert only_fault(audio).startswith("silent: no speech")
    assert measure(audio).unusable


def test_too_little_speech_is_told_with_its_seconds() -> None:
    audio = np.concatenate([silence(1.5), voice(0, 0, seconds=0.5), silence(1.5)])
    assert only_fault(audio).startswith("too short: 0.")
    assert measure(audio).unusable


def test_flattened_waves_are_clipped_and_single_peaks_are_not() -> None:
    loud = np.clip(20 * voice(0, 0), -1, 1)
    assert only_fault(loud).startswith("clipped: ")
    peaks = voice(0, 0)
    peaks[::10] = 1.0
    assert measure(peaks).clipped == 0
    whole = np.concatenate([np.zeros(97, np.float32), np.ones(3, np.float32)])
    assert measure(whole).clipped == pytest.approx(0.03)


@pytest.mark.parametrize("snr_db", [5, 15, 20])
def test_noise_is_measured_against_speech(snr_db: int) -> None:
    speech = voice(0, 0, seconds=4.0)
    background = noise(4.0, level=float(speech.std()) * 10 ** (-snr_db / 20))
    quality = measure(speech + background)
    assert bool(quality.faults) == (snr_db < 10)
    assert quality.snr_db == pytest.approx(snr_db, abs=4)
    assert not quality.unusable


def test_a_wave_that_was_flattened_and_then_made_quieter_is_clipped() -> None:
    loud = np.clip(20 * voice(0, 0), -1, 1)
    assert only_fault(np.float32(0.5) * loud).startswith("clipped: ")


def test_an_offset_is_no_noise() -> None:
    clean = measure(voice(0, 0, seconds=3.0))
    for offset in (0.01, 0.1):
        shifted = measure(voice(0, 0, seconds=3.0) + np.float32(offset))
        assert shifted.faults == ()
        assert shifted.snr_db == pytest.approx(clean.snr_db, abs=1)


def test_digital_silence_does_not_hide_noise() -> None:
    speech = voice(0, 0, seconds=4.0)
    noisy = speech + noise(4.0, level=float(speech.std()))
    assert only_fault(noisy).startswith("noisy: ")
    for padded in ([noisy, silence(1.0)], [silence(1.0), noisy + np.float32(0.1), silence(1.0)]):
        assert only_fault(np.concatenate(padded)).startswith("noisy: ")


@needs_real_speech
def test_real_speech_is_good_enough() -> None:
    files = sorted(REAL_SPEECH.rglob("*.flac"))[::60]
    for path in files:
        audio = load_audio(path)
        assert measure(audio).faults == (), path
        assert measure(audio * voice_activity(audio)).faults == (), path  # through a noise gate
        speech = trim_silence(audio)
        for dense in (speech[:48_000], speech[8_000:28_000]):
            assert not [each for each in measure(dense).faults if "too short" not in each], path
