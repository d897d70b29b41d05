"""Any sound file becomes mono float32 at 16 kHz; what is no speech is refused with a reason."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from sounds import REAL_SPEECH, needs_real_speech, noise, silence, tone

from fedspk.audio import (
    SAMPLE_RATE,
    AudioError,
    check_speech,
    crop_or_repeat,
    load_audio,
    save_audio,
    trim_silence,
    voice_activity,
)
from fedspk.errors import FedspkError


@pytest.mark.parametrize("ending", [".wav", ".flac"])
def test_saved_sound_comes_back(tmp_path: Path, ending: str) -> None:
    audio = tone(1.5)
    save_audio(tmp_path / f"a{ending}", audio)
    loaded = load_audio(tmp_path / f"a{ending}")
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, audio, atol=1 / 32768)


@pytest.mark.parametrize(
    ("container", "subtype", "rate", "channels"),
    [
        ("WAV", "PCM_24", 44_100, 2),
        ("WAV", "FLOAT", 8_000, 1),
        ("FLAC", "PCM_16", 48_000, 1),
        ("OGG", "VORBIS", 22_050, 2),
        ("OGG", "OPUS", 48_000, 1),
        ("MP3", "MPEG_LAYER_III", 32_000, 1),
        ("AIFF", "PCM_16", 11_025, 1),
    ],
)
def test_other_containers_rates_and_channels(
    tmp_path: Path, container: str, subtype: str, rate: int, channels: int
) -> None:
    time = np.arange(2 * rate) / rate
    wave = 0.4 * np.sin(2 * np.pi * 440 * time)
    path = tmp_path / "sound"
    soundfile.write(path, np.tile(wave[:, None], channels), rate, format=container, subtype=subtype)
    audio = load_audio(path)
    assert abs(len(audio) / SAMPLE_RATE - 2) < 0.1
    spectrum = np.abs(np.fft.rfft(audio[4000:20_000]))
    assert abs(int(spectrum.argmax()) - 440) <= 1
    assert 0.25 < np.abs(audio).max() < 0.5


def _truncated_flac(path: Path) -> None:
    save_audio(path.with_suffix(".flac"), noise(2))
    path.write_bytes(path.with_suffix(".flac").read_bytes()[:20_000])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "empty file", id="zero bytes"),
        pytest.param(lambda path: path.write_text("hello " * 99), "not audio", id="text"),
        pytest.param(lambda path: path.mkdir(), "unreadable", id="directory"),
        pytest.param(lambda _: None, "unreadable", id="missing"),
        pytest.param(_truncated_flac, "unreadable", id="truncated"),
        pytest.param(lambda path: save_audio(path, silence(0)), "too short", id="no samples"),
        pytest.param(
            lambda path: soundfile.write(path, np.full(99, np.nan), 16_000, subtype="FLOAT"),
            "unreadable",
            id="not finite",
        ),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path: Path, write: Any, reason: str) -> None:
    path = tmp_path / "bad.wav"
    write(path)
    with pytest.raises(AudioError, match=r"bad\.wav") as caught:
        load_audio(path)
    assert caught.value.reason == reason


def test_audio_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(AudioError("A sentence.", "silent")))
    assert (str(error), error.reason) == ("A sentence.", "silent")


def test_unknown_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match=r"\.wav or \.flac"):
        save_audio(tmp_path / "a.mp3", tone(1))


def test_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedspk.audio.soundfile.write", full)
    with pytest.raises(FedspkError, match="disk is full"):
        save_audio(tmp_path / "a.wav", tone(1))
    assert list(tmp_path.iterdir()) == []


def test_voice_activity_finds_the_speech() -> None:
    audio = np.concatenate([silence(1), tone(1), silence(1)])
    active = voice_activity(audio + noise(3, level=0.001))
    assert active.shape == audio.shape
    assert active[SAMPLE_RATE : 2 * SAMPLE_RATE].all()
    assert not active[: SAMPLE_RATE * 8 // 10].any()
    assert not active[SAMPLE_RATE * 22 // 10 :].any()


def test_voice_activity_ignores_gain_and_offset() -> None:
    audio = np.concatenate([noise(1, level=0.001), tone(1), noise(1, level=0.001)])
    moved = (0.1 * audio + 0.2).astype(np.float32)
    np.testing.assert_array_equal(voice_activity(audio), voice_activity(moved))


def test_long_pauses_shrink_and_short_ones_stay() -> None:
    audio = np.concatenate([silence(1), tone(1), silence(0.15), tone(1), silence(2), tone(1)])
    assert 3.3 < len(trim_silence(audio)) / SAMPLE_RATE < 3.6


def test_steady_sound_counts_as_speech() -> None:
    assert voice_activity(noise(2)).all()


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        pytest.param(silence(0), "too short", id="nothing"),
        pytest.param(tone(0.5), "too short", id="half a second"),
        pytest.param(silence(2), "silent", id="zeros"),
        pytest.param(silence(2) + 0.3, "silent", id="constant"),
        pytest.param(noise(2, level=1e-5), "silent", id="very quiet"),
        pytest.param(np.concatenate([silence(3), tone(0.2)]), "too short", id="hardly any speech"),
    ],
)
def test_unusable_speech_is_refused(audio: Any, reason: str) -> None:
    with pytest.raises(AudioError) as caught:
        check_speech(audio)
    assert caught.value.reason == reason


def test_crop_from_start_is_a_slice() -> None:
    audio = np.arange(100, dtype=np.float32)
    np.testing.assert_array_equal(crop_or_repeat(audio, 10, start=20), audio[20:30])


@given(length=st.integers(1, 50), samples=st.integers(1, 200), start=st.integers(0, 300))
def test_short_sound_repeats_from_its_beginning(length: int, samples: int, start: int) -> None:
    crop = crop_or_repeat(np.arange(length, dtype=np.float32), samples, start)
    np.testing.assert_array_equal(crop, np.arange(start, start + samples) % length)


def test_nothing_cannot_be_cropped() -> None:
    with pytest.raises(AudioError):
        crop_or_repeat(silence(0), 10)


@needs_real_speech
def test_real_speech_is_accepted_and_mostly_kept() -> None:
    for path in sorted(REAL_SPEECH.glob("*/*.flac"))[::120]:
        audio = load_audio(path)
        check_speech(audio)
        assert 0.3 < len(trim_silence(audio)) / len(audio) <= 1.0
