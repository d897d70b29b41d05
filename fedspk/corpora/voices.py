"""Synthetic voices: a source-filter model of speech, vectorised over time.

A random sequence of syllables gives targets for five formants, voicing, aspiration and frication;
a glottal source follows a pitch contour; both meet in a time-varying filter. Formants after
Peterson and Barney (1952) and Klatt (1980); the glottal pulse is KLGLOTT88's (Klatt and Klatt,
1990, J. Acoust. Soc. Am. 87). Computed in float64, so that rounding to 16 bits gives the same
bytes on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from fedspk.audio import SAMPLE_RATE

DoubleArray: TypeAlias = npt.NDArray[np.float64]

_STEP = 80  # samples between two control values: 5 ms
_FRAME = 320  # samples in one frame of the filter: 20 ms, half overlapping
_FFT_SIZE = 640  # room for the ringing of the narrowest formant after the frame


class _Phone(NamedTuple):
    """Formant targets in Hz, amplitudes from 0 to 1, frication's centre in Hz, length in ms."""

    f1: float
    f2: float
    f3: float
    voice: float
    breath: float
    hiss: float
    centre: float
    length: float


_VOWELS = (
    _Phone(270, 2290, 3010, 1, 1, 0, 3000, 90),  # as in heed
    _Phone(390, 1990, 2550, 1, 1, 0, 3000, 70),  # hid
    _Phone(530, 1840, 2480, 1, 1, 0, 3000, 80),  # head
    _Phone(660, 1720, 2410, 1, 1, 0, 3000, 110),  # had
    _Phone(640, 1190, 2390, 1, 1, 0, 3000, 75),  # hud
    _Phone(730, 1090, 2440, 1, 1, 0, 3000, 110),  # hod
    _Phone(570, 840, 2410, 1, 1, 0, 3000, 110),  # hawed
    _Phone(440, 1020, 2240, 1, 1, 0, 3000, 75),  # hood
    _Phone(300, 870, 2240, 1, 1, 0, 3000, 90),  # who'd
    _Phone(490, 1350, 1690, 1, 1, 0, 3000, 95),  # heard
    _Phone(500, 1500, 2500, 1, 1, 0, 3000, 50),  # the neutral vowel
)
_CONSONANTS = (
    (_Phone(250, 1100, 2150, 0.4, 0.2, 0, 3000, 65),),  # m
    (_Phone(250, 1500, 2500, 0.4, 0.2, 0, 3000, 60),),  # n
    (_Phone(340, 1050, 2700, 0.6, 0.3, 0, 3000, 60),),  # l
    (_Phone(320, 1060, 1400, 0.6, 0.3, 0, 3000, 60),),  # r
    (_Phone(290, 610, 2150, 0.6, 0.3, 0, 3000, 60),),  # w
    (_Phone(260, 2070, 3020, 0.6, 0.3, 0, 3000, 60),),  # y
    (_Phone(320, 1400, 2500, 0, 0, 1.0, 6200, 95),),  # s
    (_Phone(300, 1800, 2700, 0, 0, 1.0, 3500, 95),),  # sh
    (_Phone(340, 1100, 2080, 0, 0, 0.25, 5000, 85),),  # f
    (_Phone(240, 1400, 2500, 0.4, 0.2, 0.5, 6200, 65),),  # z
    (_Phone(220, 1100, 2080, 0.4, 0.2, 0.15, 5000, 55),),  # v
    (_Phone(500, 1500, 2500, 0, 6, 0, 3000, 55),),  # h
    (_Phone(400, 1100, 2150, 0, 0, 0, 900, 65), _Phone(400, 1100, 2150, 0, 4, 0.4, 900, 20)),  # p
    (_Phone(400, 1600, 2600, 0, 0, 0, 4500, 55), _Phone(400, 1600, 2600, 0, 4, 1.0, 4500, 25)),  # t
    (_Phone(300, 1990, 2850, 0, 0, 0, 2000, 60), _Phone(300, 1990, 2850, 0, 4, 0.8, 2000, 30)),  # k
    (
        _Phone(200, 1100, 2150, 0.15, 0, 0, 900, 60),
        _Phone(200, 1100, 2150, 1, 1, 0.3, 900, 10),
    ),  # b
    (_Phone(200, 1600, 2600, 0.15, 0, 0, 4500, 50), _Phone(200, 1600, 2600, 1, 1, 0.5, 4500, 10)),
    (_Phone(200, 1990, 2850, 0.15, 0, 0, 2000, 50), _Phone(200, 1990, 2850, 1, 1, 0.5, 2000, 15)),
)
_PAUSE = _Phone(500, 1500, 2500, 0, 0, 0, 3000, 0)
_BANDWIDTHS = (60.0, 90.0, 130.0, 200.0, 280.0)  # Hz
_HIGHER_FORMANTS = (3500.0, 4500.0)  # Hz
_BEYOND = np.arange(5500.0, 11500.0, 1000.0)  # Hz; resonances that only lift the spectrum's end
_TARGETS = len(_VOWELS) + len(_CONSONANTS)


@dataclass(frozen=True)
class Voice:
    """One speaker."""

    pitch: float  # Hz
    liveliness: float  # deviation of the pitch contour, in natural logarithms
    tract: float  # formants relative to an adult man's: 1 / relative length of the vocal tract
    formants: DoubleArray  # (5,) this speaker's own deviation of every formant, a factor
    habits: DoubleArray  # (targets, 3) and of every phone's targets, a factor
    bandwidth: float  # factor
    open_quotient: float  # part of the glottal cycle in which the folds are apart
    tilt: float  # pole of the source's low pass: the higher, the duller
    breath: float  # aspiration, relative to the pulses
    hiss: float  # frication, relative to the pulses
    rate: float  # factor on every length
    roughness: float  # jitter and shimmer


def draw_voice(rng: np.random.Generator) -> Voice:
    """Draw a speaker from two overlapping groups, larger and smaller vocal tracts."""
    small = rng.integers(2)
    return Voice(
        pitch=(190.0 if small else 118.0) * float(np.exp(rng.normal(0, 0.14))),
        liveliness=float(rng.uniform(0.06, 0.16)),
        tract=(1.14 if small else 1.0) * float(np.exp(rng.normal(0, 0.045))),
        formants=np.exp(rng.normal(0, 0.025, size=5)),
        habits=np.exp(rng.normal(0, 0.035, size=(_TARGETS, 3))),
        bandwidth=float(np.exp(rng.normal(0, 0.2))),
        open_quotient=float(rng.uniform(0.45, 0.8)),
        tilt=float(rng.uniform(0.0, 0.5)),
        breath=float(10 ** rng.uniform(-2.0, -1.1)),
        hiss=float(10 ** rng.uniform(-1.1, -0.6)),
        rate=float(np.exp(rng.normal(0, 0.1))),
        roughness=float(rng.uniform(0.005, 0.03)),
    )


def speak(voice: Voice, seconds: float, rng: np.random.Generator) -> DoubleArray:
    """Say something random for about `seconds`: (samples,) float64 of unit variance."""
    controls = _articulate(voice, seconds, rng)
    steps = len(controls.pitch)
    samples = steps * _STEP
    at = np.arange(samples) / _STEP
    grid = np.arange(steps)

    def over_time(values: DoubleArray) -> DoubleArray:
        return np.interp(at, grid, values)

    phase = np.cumsum(over_time(controls.pitch)) / SAMPLE_RATE % 1.0
    opened = phase / voice.open_quotient
    pulses = np.where(opened < 1, opened * (2 - 3 * opened), 0.0)  # KLGLOTT88, differentiated
    pulses = lfilter([1 - voice.tilt], [1, -voice.tilt], pulses)
    breath = rng.standard_normal(samples) * np.where(opened < 1, 1.0, 0.4) * voice.breath
    source = pulses * over_time(controls.voice) + breath * over_time(controls.breath)
    hiss = rng.standard_normal(samples) * over_time(controls.hiss) * voice.hiss

    frames = controls.formants[::2]
    audio = _filtered(source, _tract_response(frames, voice.bandwidth, voice.tract))
    audio += _filtered(hiss, _hiss_response(controls.centre[::2]))
    return audio / max(float(audio.std()), 1e-9)


@dataclass(frozen=True)
class _Controls:
    """Values every 5 ms; formants (steps, 5), everything else (steps,)."""

    formants: DoubleArray
    pitch: DoubleArray
    voice: DoubleArray
    breath: DoubleArray
    hiss: DoubleArray
    centre: DoubleArray


def _articulate(voice: Voice, seconds: float, rng: np.random.Generator) -> _Controls:
    phones, lengths, phrase = _random_phones(voice, seconds, rng)
    targets = np.repeat(phones, lengths, axis=0)
    steps = len(targets)
    formants = np.empty((steps, 5))
    formants[:, :3] = gaussian_filter1d(targets[:, :3], 4.0, axis=0, mode="nearest")
    formants[:, 3:] = _HIGHER_FORMANTS
    formants *= voice.tract * voice.formants
    amplitudes = gaussian_filter1d(targets[:, 3:6], 1.2, axis=0, mode="nearest")
    loudness = np.exp(0.25 * _wander(rng, steps, 20.0) + voice.roughness * _wander(rng, steps, 1.0))
    melody = voice.liveliness * _wander(rng, steps, 18.0) - 0.2 * (np.repeat(phrase, lengths) - 0.5)
    jitter = voice.roughness * _wander(rng, steps, 0.7)
    return _Controls(
        formants=formants,
        pitch=voice.pitch * np.exp(melody + jitter),
        voice=amplitudes[:, 0] * loudness,
        breath=amplitudes[:, 1] * loudness,
        hiss=amplitudes[:, 2] * loudness,
        centre=targets[:, 6] * voice.tract**0.5 * voice.formants[4],
    )


def _random_phones(
    voice: Voice, seconds: float, rng: np.random.Generator
) -> tuple[DoubleArray, npt.NDArray[np.int64], DoubleArray]:
    """Syllables in phrases: (phones, 7) targets, lengths in steps, position in the phrase."""
    phones: list[DoubleArray] = []
    lengths: list[int] = []
    phrase: list[float] = []

    def add(phone: _Phone, milliseconds: float, position: float, habit: DoubleArray) -> None:
        target = np.array(phone[:7], dtype=np.float64)
        target[:3] *= habit
        phones.append(target)
        lengths.append(max(1, round(milliseconds * SAMPLE_RATE / 1000 / _STEP)))
        phrase.append(position)

    def add_sound(number: int, position: float, stress: float) -> None:
        vowel = number < len(_VOWELS)
        parts = (_VOWELS[number],) if vowel else _CONSONANTS[number - len(_VOWELS)]
        for part in parts:
            length = part.length * voice.rate * stress * rng.uniform(0.8, 1.25)
            add(part, length, position, voice.habits[number])

    neutral = np.ones(3)
    add(_PAUSE, rng.uniform(60, 200), 0.0, neutral)
    while sum(lengths) * _STEP < seconds * SAMPLE_RATE:
        syllables = int(rng.integers(3, 9))
        for i in range(syllables):
            position = i / syllables
            stress = rng.uniform(0.85, 1.35) * (1.3 if i == syllables - 1 else 1.0)
            if rng.random() < 0.85:
                add_sound(int(rng.integers(len(_VOWELS), _TARGETS)), position, 1.0)
            add_sound(int(rng.integers(len(_VOWELS))), position, stress)
            if rng.random() < 0.35:
                add_sound(int(rng.integers(len(_VOWELS), _TARGETS)), position, 1.0)
        add(_PAUSE, rng.uniform(120, 450), 0.0, neutral)
    return np.array(phones), np.array(lengths), np.array(phrase)


def _wander(rng: np.random.Generator, steps: int, smoothness: float) -> DoubleArray:
    """Smooth noise of about unit variance: (steps,)."""
    noise = gaussian_filter1d(rng.standard_normal(steps), smoothness, mode="wrap")
    wander: DoubleArray = noise * np.sqrt(2 * np.sqrt(np.pi) * max(smoothness, 0.3))
    return wander


def _tract_response(
    formants: DoubleArray, bandwidth: float, tract: float
) -> npt.NDArray[np.complex128]:
    """Cascade of second-order resonances: (frames, 5) Hz to (frames, FFT bins)."""
    frequency = fft.rfftfreq(_FFT_SIZE, 1 / SAMPLE_RATE)
    wide = 400.0 * bandwidth
    beyond = (_BEYOND * tract)[:, None] ** 2
    poles = np.prod(1 - (frequency**2 - 1j * frequency * wide) / beyond, axis=0)
    response = np.tile(poles, (len(formants), 1))
    for k, width in enumerate(_BANDWIDTHS):
        resonance = formants[:, k, None] ** 2 + (width * bandwidth / 2) ** 2
        pole = np.empty_like(response)
        pole.real = 1 - frequency**2 / resonance
        pole.imag = frequency * (width * bandwidth) / resonance
        response *= pole
    inverted: npt.NDArray[np.complex128] = np.reciprocal(response)
    return inverted


def _hiss_response(centre: DoubleArray) -> DoubleArray:
    """A band of half an octave's deviation round each frame's centre: (frames, FFT bins)."""
    frequency = np.maximum(fft.rfftfreq(_FFT_SIZE, 1 / SAMPLE_RATE), 50.0)
    octaves = np.log2(frequency) - np.log2(centre)[:, None]
    response: DoubleArray = np.exp(-0.5 * (octaves / 0.5) ** 2)
    return response


def _filtered(
    audio: DoubleArray, response: npt.NDArray[np.complex128] | DoubleArray
) -> DoubleArray:
    """Overlap-add with one response per frame of 20 ms every 10 ms: (samples,)."""
    hop = _FRAME // 2
    frames = len(response)
    padded = np.zeros(frames * hop + _FRAME)
    padded[hop : hop + len(audio)] = audio
    window = np.hanning(_FRAME + 1)[:-1]
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::hop][:frames] * window
    ringing = fft.irfft(fft.rfft(pieces, _FFT_SIZE) * response, _FFT_SIZE)
    out = np.zeros(frames * hop + _FFT_SIZE)
    for part in range(0, _FFT_SIZE, hop):  # a few shifted sums instead of one per frame
        piece = ringing[:, part : part + hop]
        lane = out[part : part + frames * hop].reshape(frames, hop)
        lane[:, : piece.shape[1]] += piece
    return out[hop : hop + len(audio)]
