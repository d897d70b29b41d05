"""Recording from a microphone (optional extra `microphone`); what is heard stays in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedspk.audio import FloatArray, resample
from fedspk.errors import FedspkError

_BLOCKS_A_SECOND = 10
_SILENCE_DB = -100.0
_METER, _METER_FLOOR_DB = 24, -60.0  # the meter's characters, and the level at its left end
_LOUD_DB, _LOW_DB = -1.0, -40.0


def record(seconds: float, on_level: Callable[[float, float], None]) -> FloatArray:
    """Record from the default microphone: (samples,) float32, mono, 16 kHz.

    Args:
        seconds: how long.
        on_level: called ten times a second with the seconds so far and the loudest sample since the
            last call, in dB relative to full scale.

    Raises:
        FedspkError: there is no microphone, or the extra or its library is not installed.
    """
    sounddevice = _import_sounddevice()
    try:
        rate = round(sounddevice.query_devices(kind="input")["default_samplerate"])
        block = rate // _BLOCKS_A_SECOND
        heard: list[FloatArray] = []
        with sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32") as stream:
            for number in range(round(seconds * _BLOCKS_A_SECOND)):
                frames, _ = stream.read(block)
                heard.append(frames[:, 0].copy())
                on_level((number + 1) / _BLOCKS_A_SECOND, _level_db(heard[-1]))
    except (sounddevice.PortAudioError, ValueError) as error:
        raise FedspkError(
            f"there is no microphone that can be used ({error}); connect one, or give files."
        ) from error
    return resample(np.concatenate(heard), rate)


def meter(at: float, level_db: float) -> str:
    """Return one line that shows the level: where it is good, too low or too loud.

    >>> meter(2.5, -20.0)
    '  2.5 s [################--------]  -20 dB          '
    """
    filled = round(_METER * min(1.0, max(0.0, 1 + level_db / -_METER_FLOOR_DB)))
    bar = "#" * filled + "-" * (_METER - filled)
    if level_db > _LOUD_DB:
        word = "too loud"
    elif level_db < _LOW_DB:
        word = "too low"
    else:
        word = ""
    return f"{at:5.1f} s [{bar}] {level_db:4.0f} dB {word:<9}"


def _level_db(audio: FloatArray) -> float:
    peak = float(np.max(np.abs(audio), initial=0.0))
    return max(_SILENCE_DB, 20 * float(np.log10(max(peak, 1e-12))))


def _import_sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise FedspkError(
            "sounddevice is not installed; install it with: pip install 'fedspk[microphone]'"
        ) from error
    except OSError as error:  # the wheel for Linux comes without PortAudio
        raise FedspkError(
            f"sounddevice does not find its library ({error}); install PortAudio, on Debian with: "
            "apt install libportaudio2"
        ) from error
    return sounddevice
