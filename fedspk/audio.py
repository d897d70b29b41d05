"""Any sound file to mono float32 at 16 kHz, and which of it is speech.

Amplitudes are in units of full scale: 1.0 is 0 dBFS. Levels are in dB relative to that.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from fedspk.errors import FedspkError
from fedspk.files import atomic_write

SAMPLE_RATE = 16_000

FloatArray: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
AudioFault: TypeAlias = Literal["unreadable", "not audio", "empty file", "too short", "silent"]

# What a recording may be that does not come from the owner's own files.
_RATES = range(8_000, 96_001)
_MOST_CHANNELS = 8

# Voice activity: a block of 10 ms is speech when its level passes all three thresholds.
_BLOCK = SAMPLE_RATE // 100
_BELOW_LOUD_DB = 35.0  # at most this far below the loud parts (95th percentile of the levels) ...
_ABOVE_FLOOR_DB = 6.0  # ... and above the background (5th percentile), where the two differ clearly
_CLEARLY_DB = 15.0  # the background's threshold never comes closer than this to the loud parts
_SILENCE_DBFS = -70.0  # ... and above this in any case
_HANGOVER = 10  # blocks kept on either side of speech, so that onsets and stops stay whole


class AudioError(FedspkError):
    """A sound that cannot be used; `reason` is the short cause that reports count."""

    def __init__(self, message: str, reason: AudioFault) -> None:
        super().__init__(message)
        self.reason: AudioFault = reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, AudioFault]]:
        return type(self), (str(self), self.reason)


def load_audio(path: Path) -> FloatArray:
    """Decode any container that libsndfile reads: (samples,) float32, mono, 16 kHz.

    Channels are averaged; other rates are converted by soxr's high-quality resampler.

    Raises:
        AudioError: the file is missing, empty, damaged, not audio, or holds no samples.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{path}: is not a file.", "unreadable")
        if status.st_size == 0:
            raise AudioError(f"{path}: the file is empty (zero bytes).", "empty file")
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            channels = file.read(dtype="float32", always_2d=True)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}).", "unreadable") from error
    except soundfile.LibsndfileError as error:
        raise _decoding_error(str(path), error) from error
    return _mono(channels, rate, str(path))


def decode_audio(data: bytes, longest_s: float) -> FloatArray:
    """Decode the content of a sound file from elsewhere: (samples,) float32, mono, 16 kHz.

    Takes no more memory than `longest_s` of it needs, whatever its header says.

    Raises:
        AudioError: it is empty, damaged, not audio or too long, or its rate or number of channels
            is not one of a recording.
    """
    name = "the recording"
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            if rate not in _RATES or file.channels > _MOST_CHANNELS:
                raise AudioError(
                    f"{name} has {file.channels} channels at {rate} Hz; at most {_MOST_CHANNELS} "
                    f"at {_RATES.start} to {_RATES.stop - 1} Hz can be heard.",
                    "unreadable",
                )
            most = round(longest_s * rate)
            channels = file.read(most + 1, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _decoding_error(name, error) from error
    if len(channels) > most:
        raise AudioError(f"{name} is longer than {longest_s:g} s; send less of it.", "unreadable")
    return _mono(channels, rate, name)


def resample(audio: FloatArray, sample_rate: int) -> FloatArray:
    """Convert (samples,) float32 from `sample_rate` to 16 kHz."""
    if sample_rate == SAMPLE_RATE:
        return np.ascontiguousarray(audio, dtype=np.float32)
    return np.asarray(soxr.resample(audio, sample_rate, SAMPLE_RATE), dtype=np.float32)


def save_audio(path: Path, audio: FloatArray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write (samples,) float32 as 16-bit WAV or FLAC, by the name's ending, whole or not at all.

    Raises:
        FedspkError: the ending is neither, or the file cannot be written.
    """
    container = {".wav": "WAV", ".flac": "FLAC"}.get(Path(path).suffix.lower())
    if container is None:
        raise FedspkError(f"{path}: sound is written as .wav or .flac; choose one of the two.")
    with atomic_write(path) as file:
        soundfile.write(file, audio, sample_rate, format=container, subtype="PCM_16")


def voice_activity(audio: FloatArray) -> BoolArray:
    """Mark the samples of (samples,) float32 that are speech, by energy: (samples,) bool.

    The level of every 10 ms block is compared with the recording's own loud parts and background
    (the thresholds stand at the top of this module); 100 ms on either side of speech are kept.
    A steady sound counts as speech: an energy detector cannot know better.
    """
    active = _active_blocks(audio)
    if not active.any():
        return np.zeros(len(audio), dtype=np.bool_)
    width = 2 * _HANGOVER + 1
    counts = np.cumsum(np.pad(active, (_HANGOVER + 1, _HANGOVER)))
    near = counts[width:] > counts[:-width]  # a block of speech within the hangover
    mask: BoolArray = np.repeat(near, _BLOCK)[: len(audio)]
    return mask


def trim_silence(audio: FloatArray) -> FloatArray:
    """Drop what is not speech: both ends, and pauses down to the 200 ms that surround speech.

    Returns (n,) float32 with n <= samples; empty when nothing is speech.
    """
    return audio[voice_activity(audio)]


def check_speech(audio: FloatArray, min_seconds: float = 1.0) -> None:
    """Refuse what no speaker model can use.

    Raises:
        AudioError: the sound is shorter than `min_seconds`, nothing in it is speech, or less than
            half of `min_seconds` is.
    """
    seconds = len(audio) / SAMPLE_RATE
    if seconds < min_seconds:
        raise AudioError(
            f"The sound lasts {seconds:.2f} s; at least {min_seconds:g} s are needed.", "too short"
        )
    speech = _active_blocks(audio).sum() * _BLOCK / SAMPLE_RATE
    if speech == 0:
        raise AudioError("The sound is silent; record it again, closer to the speaker.", "silent")
    if speech < min_seconds / 2:
        raise AudioError(
            f"Only {speech:.2f} s of the sound are speech; at least {min_seconds / 2:g} s are "
            "needed.",
            "too short",
        )


def change_speed(audio: FloatArray, speed: float) -> FloatArray:
    """Play `speed` times as fast: (samples / speed,) float32; pitch and formants move with it.

    Source: Ko et al., "Audio augmentation for speech recognition", Interspeech 2015.
    """
    if speed == 1.0:
        return audio
    return np.asarray(soxr.resample(audio, SAMPLE_RATE * speed, SAMPLE_RATE), dtype=np.float32)


def crop_or_repeat(audio: FloatArray, samples: int, start: int = 0) -> FloatArray:
    """Cut `samples` samples from `start` on: (samples,) float32.

    A sound that ends too early is repeated from its beginning until the crop is full; `start`
    wraps round in the same way.

    Raises:
        AudioError: `audio` is empty.
    """
    if len(audio) == 0:
        raise AudioError("There is no sound to crop.", "too short")
    if start >= 0 and start + samples <= len(audio):
        return audio[start : start + samples]
    return np.take(audio, np.arange(start, start + samples), mode="wrap")


def _active_blocks(audio: FloatArray) -> BoolArray:
    """Say for each block of 10 ms whether it is speech, before any hangover: (blocks,) bool."""
    if len(audio) == 0:
        return np.zeros(0, dtype=np.bool_)
    centred = audio - audio.mean()
    blocks = -(-len(centred) // _BLOCK)
    padded = np.zeros(blocks * _BLOCK, dtype=np.float32)
    padded[: len(centred)] = centred
    frames = padded.reshape(blocks, _BLOCK)
    energy = np.einsum("bs,bs->b", frames, frames) / _BLOCK
    level = 10 * np.log10(np.maximum(energy, 1e-12))
    floor, loud = np.percentile(level, (5, 95))
    threshold = max(
        loud - _BELOW_LOUD_DB, min(floor + _ABOVE_FLOOR_DB, loud - _CLEARLY_DB), _SILENCE_DBFS
    )
    active: BoolArray = level > threshold
    return active


def _mono(channels: FloatArray, rate: int, name: str) -> FloatArray:
    """Average (samples, channels) and convert to 16 kHz; refuse what holds no sound."""
    if len(channels) == 0:
        raise AudioError(f"{name}: holds no samples.", "too short")
    audio = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1)
    if not np.isfinite(audio).all():
        raise AudioError(f"{name}: holds samples that are not finite numbers.", "unreadable")
    return resample(audio, rate)


def _decoding_error(name: str, error: soundfile.LibsndfileError) -> AudioError:
    """Tell a file that is no sound from a sound that is damaged."""
    unknown_format = 1  # libsndfile's SF_ERR_UNRECOGNISED_FORMAT
    if error.code == unknown_format:
        return AudioError(f"{name}: is not a sound file that libsndfile knows.", "not audio")
    return AudioError(f"{name}: the sound is damaged ({error.error_string}).", "unreadable")
