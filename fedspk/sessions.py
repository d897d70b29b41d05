"""Simulated recording sessions: the same voice through another room, microphone, noise and codec.

A corpus with one session a speaker gives the speaker away by the recording channel. Passing every
utterance through a channel of its own removes that hint. Training augments with the `"training"`
condition, tests and enrolments use the `"test"` condition, and no setting of one can be drawn in
the other, so a model is never tested on a channel it has trained on:

    ==========================  =============================  ===================================
    stage                       training                       test
    ==========================  =============================  ===================================
    room: reverberation T60     0.10 to 0.30 s                 0.32 to 0.55 s
    room: direct to reverberant 6 to 14 dB                     2 to 5.5 dB
    microphone: shape           3 resonances of +-3 to 9 dB    smooth random curve of knots an
                                                               octave apart, 4 dB deviation
    microphone: low cut         30 to 120 Hz                   140 to 280 Hz
    microphone: high cut        6.8 to 7.9 kHz                 5.2 to 6.6 kHz
    noise: kind                 white, pink, babble            fan, mains hum, clatter
    noise: level                5 to 25 dB below the speech    5 to 25 dB below the speech
    codec                       none, mu-law 8 bit             IMA ADPCM 4 bit, A-law 8 bit
    gain                        -12 to 0 dB peak               -24 to -14 dB peak
    ==========================  =============================  ===================================

Only the range of the noise level is shared; the noises themselves are not. Room and microphone act
as one filter, the noise is added behind it, then come gain and codec.

    >>> audio = np.sin(0.1 * np.arange(16_000)).astype(np.float32)
    >>> heard = apply_session(audio, SessionSpec("test", seed=1))
    >>> heard.shape == audio.shape
    True
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import soundfile
from scipy import fft

from fedspk.seeds import numpy_generator

FloatArray: TypeAlias = npt.NDArray[np.float32]
_Shape: TypeAlias = Callable[[FloatArray], npt.NDArray[np.floating]]
Condition: TypeAlias = Literal["training", "test"]
_T = TypeVar("_T")

_RATE = 16_000
_VERSION = 1  # part of every key: raise it whenever the same seed would sound different


@dataclass(frozen=True)
class SessionSpec:
    """One simulated session: a family of conditions and the seed that draws from it."""

    condition: Condition
    seed: int

    def key(self) -> str:
        """Return the text that names this session in a cache."""
        return f"session{_VERSION}-{self.condition}-{self.seed}"


@dataclass(frozen=True)
class _Ranges:
    """What a condition may draw; every pair is (lowest, highest)."""

    reverberation_s: tuple[float, float]
    direct_db: tuple[float, float]
    low_cut_hz: tuple[float, float]
    high_cut_hz: tuple[float, float]
    peak_db: tuple[float, float]
    microphone: Callable[[FloatArray, np.random.Generator], FloatArray]
    noises: tuple[Callable[[int, np.random.Generator], FloatArray], ...]
    codecs: tuple[Callable[[FloatArray], FloatArray], ...]


_SNR_DB = (5.0, 25.0)


def apply_session(audio: FloatArray, spec: SessionSpec) -> FloatArray:
    """Return the audio as that session would have recorded it.

    audio: (samples,) float32, mono, 16 kHz. Returns (samples,) float32 within [-1, 1]. The same
    audio and spec give the same result on any machine, to float32 rounding. Digital silence comes
    back as noise at the floor of the codec.
    """
    if audio.size == 0:
        return audio.astype(np.float32)
    ranges = _CONDITIONS[spec.condition]
    rng = numpy_generator("session", _VERSION, spec.condition, spec.seed)
    heard = _through_room_and_microphone(audio, ranges, rng)
    noise = _pick(ranges.noises, rng)(audio.size, rng)
    snr = rng.uniform(*_SNR_DB)
    heard += noise * np.float32(_rms(heard) / max(_rms(noise), 1e-12) * 10 ** (-snr / 20))
    peak = float(np.max(np.abs(heard)))
    heard *= np.float32(10 ** (rng.uniform(*ranges.peak_db) / 20) / max(peak, 1e-6))
    return _pick(ranges.codecs, rng)(heard)


def _through_room_and_microphone(
    audio: FloatArray, ranges: _Ranges, rng: np.random.Generator
) -> FloatArray:
    room = _room_impulse_response(
        rng.uniform(*ranges.reverberation_s), rng.uniform(*ranges.direct_db), rng
    )
    size = fft.next_fast_len(audio.size + room.size, real=True)
    spectrum = fft.rfft(audio.astype(np.float32), size) * fft.rfft(room, size)
    frequencies = _frequencies(size)
    gain_db = ranges.microphone(frequencies, rng)
    gain = np.power(np.float32(10), gain_db / 20)
    low, high = rng.uniform(*ranges.low_cut_hz), rng.uniform(*ranges.high_cut_hz)
    gain /= np.sqrt(1 + (np.float32(low) / np.maximum(frequencies, 1)) ** 4)
    gain /= np.sqrt(1 + (frequencies / np.float32(high)) ** 16)
    spectrum *= gain
    return fft.irfft(spectrum, size)[: audio.size].astype(np.float32, copy=False)


def _room_impulse_response(
    reverberation_s: float, direct_db: float, rng: np.random.Generator
) -> FloatArray:
    """Return a direct path and a tail of noise that decays by 60 dB in `reverberation_s`."""
    samples = int(reverberation_s * _RATE)
    decay = np.power(10, np.linspace(0, -3, samples, dtype=np.float32))
    tail = rng.standard_normal(samples, dtype=np.float32) * decay
    tail[: int(0.002 * _RATE)] = 0  # nothing is heard before the first wall
    tail *= np.float32(10 ** (-direct_db / 20) / np.sqrt(np.sum(tail**2)))
    tail[0] = 1
    return tail


def _resonances(frequencies: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a microphone's response in dB: three resonances or notches, each an octave wide."""
    octave = np.log2(np.maximum(frequencies, 20))
    response = np.zeros_like(octave, dtype=np.float32)
    for centre in rng.uniform(np.log2(150), np.log2(6000), 3):
        height = rng.uniform(3, 9) * rng.choice((-1, 1))
        response += np.float32(height) * np.exp(-(((octave - np.float32(centre)) / 0.6) ** 2))
    return response


def _smooth_curve(frequencies: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a microphone's response in dB: a random line through knots one octave apart."""
    knots = np.log2(62.5) + np.arange(8)
    heights = 4 * rng.standard_normal(knots.size)
    octave = np.log2(np.maximum(frequencies, 20))
    curve: FloatArray = np.interp(octave, knots, heights).astype(np.float32)
    return curve


def _white(samples: int, rng: np.random.Generator) -> FloatArray:
    return rng.standard_normal(samples, dtype=np.float32)


def _pink(samples: int, rng: np.random.Generator) -> FloatArray:
    return _shaped(samples, lambda hertz: 1 / np.sqrt(np.maximum(hertz, 30)), rng)


def _babble(samples: int, rng: np.random.Generator) -> FloatArray:
    """Return noise with the long-term spectrum of speech that rises and falls with syllables."""
    noise = _shaped(samples, lambda hertz: 1 / (1 + (hertz / 600) ** 1.5), rng)
    knots = np.abs(rng.standard_normal(samples // (_RATE // 8) + 2))
    envelope = np.interp(np.arange(samples), np.arange(knots.size) * (_RATE // 8), knots)
    return noise * (0.3 + envelope).astype(np.float32)


def _fan(samples: int, rng: np.random.Generator) -> FloatArray:
    """Return rumble below a random corner, with the broad hiss of moving air."""
    corner = rng.uniform(200, 1200)
    return _shaped(samples, lambda hertz: 1 / (1 + (hertz / corner) ** 2) + 0.05, rng)


def _hum(samples: int, rng: np.random.Generator) -> FloatArray:
    """Return mains hum: harmonics of 50 or 60 Hz on a floor of brown noise."""
    mains = rng.choice((50.0, 60.0)) * rng.uniform(0.998, 1.002)
    strength = rng.uniform(0.2, 1) / (1 + np.arange(40)) ** rng.uniform(0.3, 0.8)

    def shape(hertz: FloatArray) -> FloatArray:
        response = (10 / np.maximum(hertz, 50)).astype(np.float32)
        lines = np.searchsorted(hertz, mains * (1 + np.arange(40))).clip(max=hertz.size - 1)
        response[lines] += (np.sqrt(hertz.size) * strength).astype(np.float32)
        return response

    return _shaped(samples, shape, rng)


def _clatter(samples: int, rng: np.random.Generator) -> FloatArray:
    """Return knocks and clicks, about eight a second, on a faint floor."""
    noise: FloatArray = rng.standard_normal(samples, dtype=np.float32)
    noise *= np.float32(0.05)
    length = min(samples, int(0.08 * _RATE))
    times = np.linspace(0, length / _RATE, length, endpoint=False, dtype=np.float32)
    for start in rng.integers(0, samples, max(1, round(8 * samples / _RATE))):
        ring = rng.standard_normal(length, dtype=np.float32)
        ring *= np.exp(-times / np.float32(rng.uniform(0.002, 0.02)))
        end = min(samples, int(start) + length)
        noise[start:end] += ring[: end - start] * np.float32(rng.uniform(0.3, 1))
    return noise


def _shaped(samples: int, shape: _Shape, rng: np.random.Generator) -> FloatArray:
    """Return Gaussian noise whose amplitude spectrum follows `shape(hertz)`."""
    size = fft.next_fast_len(samples, real=True)
    bins = size // 2 + 1
    spectrum = rng.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
    spectrum *= shape(_frequencies(size)).astype(np.float32)
    return fft.irfft(spectrum, size)[:samples].astype(np.float32, copy=False)


def _mu_law(audio: FloatArray) -> FloatArray:
    return _transcode(audio, "WAV", "ULAW")


def _a_law(audio: FloatArray) -> FloatArray:
    return _transcode(audio, "WAV", "ALAW")


def _adpcm(audio: FloatArray) -> FloatArray:
    return _transcode(audio, "WAV", "IMA_ADPCM")


def _no_codec(audio: FloatArray) -> FloatArray:
    return audio


def _transcode(audio: FloatArray, container: str, codec: str) -> FloatArray:
    """Return the audio after libsndfile has encoded and decoded it in memory."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, _RATE, format=container, subtype=codec)
    buffer.seek(0)
    decoded: FloatArray = soundfile.read(buffer, dtype="float32")[0][: audio.size]
    return decoded


def _frequencies(size: int) -> FloatArray:
    return np.fft.rfftfreq(size, 1 / _RATE).astype(np.float32)


def _rms(audio: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(audio))))


def _pick(choices: tuple[_T, ...], rng: np.random.Generator) -> _T:
    return choices[int(rng.integers(len(choices)))]


_CONDITIONS: dict[str, _Ranges] = {
    "training": _Ranges(
        reverberation_s=(0.10, 0.30),
        direct_db=(6, 14),
        low_cut_hz=(30, 120),
        high_cut_hz=(6800, 7900),
        peak_db=(-12, 0),
        microphone=_resonances,
        noises=(_white, _pink, _babble),
        codecs=(_no_codec, _mu_law),
    ),
    "test": _Ranges(
        reverberation_s=(0.32, 0.55),
        direct_db=(2, 5.5),
        low_cut_hz=(140, 280),
        high_cut_hz=(5200, 6600),
        peak_db=(-24, -14),
        microphone=_smooth_curve,
        noises=(_fan, _hum, _clatter),
        codecs=(_a_law, _adpcm),
    ),
}
