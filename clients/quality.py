"""Is a recording good enough? Too short, silent, clipped or noisy, with the measure and the remedy.

The thresholds stand below with their reasons; levels are in dB relative to full scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedspk.audio import SAMPLE_RATE, BoolArray, FloatArray, voice_activity

# A model hears about 3.5 s and repeats what is shorter. Below 1 s the same few sounds come again
# and again: what is compared is what was said, not who said it.
LEAST_SPEECH_S = 1.0

# Samples at the recording's own peak (within 0.1 dB), three and more in a row, are a flattened
# wave, made quieter or not afterwards: a whole recording touches its peak with single samples.
# From one sample in a thousand on, the overtones that clipping adds are heard in every syllable.
CLIPPED_LEVEL = 0.99
MOST_CLIPPED = 0.001

# Speech against the background, both by energy. Recordings at a desk measure 20 to 50 dB. Below 10
# dB the quiet half of speech is under the noise; training hears down to 5 dB, but a profile is
# compared for years, so it deserves better than the worst case. A constant offset is no noise, and
# digital silence (a noise gate's, padding) no background. Without a pause the gaps between sounds
# are the background: 22 dB and more in clean speech of 3 s, but in 1.25 s sometimes not 10.
LEAST_SNR_DB = 10.0
_BACKGROUND_PERCENTILE = 10  # of the levels of 10 ms blocks: pauses and gaps between words
_LEAST_WITHOUT_PAUSE_S = 3.0
_BLOCK = SAMPLE_RATE // 100


@dataclass(frozen=True)
class Quality:
    """What was measured in a recording.

    Args:
        seconds: whole length.
        speech_s: of it, speech.
        clipped: share of all samples in flattened tops, 0 to 1.
        snr_db: how far speech stands above the background, dB; None when no background is heard.
    """

    seconds: float
    speech_s: float
    clipped: float
    snr_db: float | None

    @property
    def unusable(self) -> tuple[str, ...]:
        """Why no model can hear who speaks, as phrases with the remedy; empty if it can."""
        if self.speech_s == 0:
            return ("silent: no speech was found; check the microphone and speak closer to it",)
        if self.speech_s < LEAST_SPEECH_S:
            return (
                f"too short: {self.speech_s:.1f} s of speech, at least {LEAST_SPEECH_S:g} s are "
                "needed; say a whole sentence",
            )
        return ()

    @property
    def faults(self) -> tuple[str, ...]:
        """All that is wrong with the recording, as phrases with the remedy."""
        if self.unusable:
            return self.unusable
        faults = []
        if self.clipped > MOST_CLIPPED:
            faults.append(
                f"clipped: {100 * self.clipped:.1f} % of the samples are cut off at the top, at "
                f"most {100 * MOST_CLIPPED:g} % may be; speak more quietly or turn the gain down"
            )
        if self.snr_db is not None and self.snr_db < LEAST_SNR_DB:
            faults.append(
                f"noisy: speech is {self.snr_db:.0f} dB above the background, at least "
                f"{LEAST_SNR_DB:g} dB are needed; go where it is quiet or closer to the microphone"
            )
        return tuple(faults)


def measure(audio: FloatArray) -> Quality:
    """Measure a recording, (samples,) float32 at 16 kHz."""
    mask = voice_activity(audio)
    return Quality(
        seconds=len(audio) / SAMPLE_RATE,
        speech_s=float(mask.sum()) / SAMPLE_RATE,
        clipped=_clipped(audio),
        snr_db=_snr_db(audio, mask),
    )


def _clipped(audio: FloatArray) -> float:
    """Return the share of samples in runs of three and more at the recording's peak."""
    level = np.abs(audio)
    peak = float(level.max(initial=0.0))
    if peak == 0:
        return 0.0
    high = np.pad(level >= CLIPPED_LEVEL * peak, 2)
    middle = high[:-2] & high[1:-1] & high[2:]  # of three in a row
    flat = np.pad(middle, 1)
    return float((flat[:-2] | flat[1:-1] | flat[2:]).sum()) / len(audio)


def _snr_db(audio: FloatArray, mask: BoolArray) -> float | None:
    blocks = len(audio) // _BLOCK
    frames = audio[: blocks * _BLOCK].reshape(blocks, _BLOCK)
    is_speech = np.all(mask[: blocks * _BLOCK].reshape(blocks, _BLOCK), axis=1)
    is_live = np.ptp(frames, axis=1) > 0
    frames, is_speech = frames[is_live], is_speech[is_live]
    has_pause = not is_speech.all()
    if not is_speech.any() or not (
        has_pause or len(frames) * _BLOCK >= _LEAST_WITHOUT_PAUSE_S * SAMPLE_RATE
    ):
        return None
    power = np.mean(np.square(frames - frames.mean()), axis=1)
    background = max(float(np.percentile(power, _BACKGROUND_PERCENTILE)), 1e-12)
    return 10 * float(np.log10(max(float(power[is_speech].mean()), 1e-12) / background))
