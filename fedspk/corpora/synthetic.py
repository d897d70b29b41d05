"""A corpus that is made, not recorded: the same voices from the same seed on every machine.

Every speaker has sessions, every session its own microphone, noise and mood of the day. Speakers
overlap in every parameter, so that telling them apart is neither trivial nor impossible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import fft

from fedspk.audio import SAMPLE_RATE, FloatArray
from fedspk.corpora.base import Corpus, Utterance
from fedspk.corpora.voices import DoubleArray, Voice, draw_voice, speak
from fedspk.errors import FedspkError
from fedspk.seeds import numpy_generator

_VERSION = 2  # raise it when the same seed sounds different


@dataclass(frozen=True)
class SyntheticConfig:
    """How large the corpus is; `utterances` a speaker, dealt evenly to `sessions`."""

    speakers: int = 48
    utterances: int = 20
    sessions: int = 4


def synthetic_corpus(config: SyntheticConfig, *, seed: int) -> Corpus:
    """Return a corpus of made voices; speaker 7 is the same whatever the number of speakers.

    Raises:
        FedspkError: a number is out of range.
    """
    if not (1 <= config.speakers <= 99_999 and 1 <= config.sessions <= config.utterances <= 9_999):
        raise FedspkError(
            f"synthetic corpus: {config.speakers} speakers with {config.utterances} utterances in "
            f"{config.sessions} sessions cannot be made; use 1 to 99999 speakers, and no more "
            "sessions than utterances."
        )
    utterances = tuple(
        Utterance(
            id=f"voice{speaker:05d}/session{number % config.sessions}/{number:04d}",
            speaker=f"voice{speaker:05d}",
            session=f"session{number % config.sessions}",
        )
        for speaker in range(config.speakers)
        for number in range(config.utterances)
    )
    ordered = tuple(sorted(utterances, key=lambda each: each.id))
    return Corpus("synthetic", ordered, source=SyntheticSource(seed))


@dataclass(frozen=True)
class SyntheticSource:
    """Sound that is computed from the utterance's name and the seed."""

    seed: int
    seconds_each = 0.03

    def read(self, utterance: Utterance) -> FloatArray:
        """Return (samples,) float32 at 16 kHz, whole 16-bit steps."""
        session = f"{utterance.speaker}/{utterance.session}"
        voice = draw_voice(self._rng("voice", utterance.speaker))
        voice = _of_the_day(voice, self._rng("mood", session))
        rng = self._rng("speech", utterance.id)
        clean = speak(voice, rng.uniform(2.2, 3.7), rng)
        heard = _Channel.draw(self._rng("channel", session)).apply(clean, rng)
        pcm = np.clip(np.rint(heard * 32768.0), -32768, 32767)
        return (pcm / 32768.0).astype(np.float32)

    def stamp(self, utterance: Utterance) -> str:
        """Return what the sound depends on."""
        return f"synthetic\x1f{_VERSION}\x1f{self.seed}\x1f{utterance.id}"

    def _rng(self, purpose: str, name: str) -> np.random.Generator:
        return numpy_generator(self.seed, "synthetic", _VERSION, purpose, name)


def _of_the_day(voice: Voice, rng: np.random.Generator) -> Voice:
    """Nobody sounds the same every day: pitch, rate, breath and effort move a little."""
    return replace(
        voice,
        pitch=voice.pitch * float(np.exp(rng.normal(0, 0.06))),
        rate=voice.rate * float(np.exp(rng.normal(0, 0.06))),
        breath=voice.breath * float(np.exp(rng.normal(0, 0.3))),
        tilt=float(np.clip(voice.tilt + rng.normal(0, 0.08), 0.0, 0.7)),
    )


@dataclass(frozen=True)
class _Channel:
    """A session's microphone and background: knots every octave in dB, noise and gain in dB."""

    curve: DoubleArray
    low_cut: float  # Hz
    noise_slope: float  # dB per octave
    noise: float  # dB below the speech
    gain: float  # dB relative to full scale, rms

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Channel:
        return cls(
            curve=rng.normal(0, 5.0, size=len(_KNOTS)),
            low_cut=float(rng.uniform(50, 180)),
            noise_slope=float(rng.uniform(-9, -2)),
            noise=float(rng.uniform(10, 30)),
            gain=float(rng.uniform(-32, -22)),
        )

    def apply(self, audio: DoubleArray, rng: np.random.Generator) -> DoubleArray:
        """Return what the microphone delivers: (samples,) float64, full scale 1."""
        size = fft.next_fast_len(len(audio), real=True)
        frequency = np.maximum(fft.rfftfreq(size, 1 / SAMPLE_RATE), 20.0)
        octave = np.log2(frequency)
        level = np.interp(octave, _KNOTS, self.curve)
        speech = fft.rfft(audio, size) * (
            10 ** (level / 20) / np.sqrt(1 + (self.low_cut / frequency) ** 4)
        )
        shape = 10 ** (self.noise_slope * octave / 20)
        noise = rng.standard_normal((2, len(shape))) * shape
        power = np.sum(speech.real**2 + speech.imag**2) / np.sum(noise**2)
        speech += (noise[0] + 1j * noise[1]) * np.sqrt(power * 10 ** (-self.noise / 10))
        heard: DoubleArray = fft.irfft(speech, size)[: len(audio)]
        heard *= 10 ** (self.gain / 20) / heard.std()
        return heard


_KNOTS = np.log2(62.5) + np.arange(8.0)  # octaves: 62.5 Hz to 8 kHz
