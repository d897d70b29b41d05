"""Sounds for tests: tones and noise that are made, and real speech where it lies beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedspk.audio import SAMPLE_RATE, FloatArray, save_audio

REAL_SPEECH = Path(__file__).parents[3] / "shared" / "speech" / "english_read"

needs_real_speech = pytest.mark.skipif(
    not REAL_SPEECH.is_dir(), reason="no real speech beside the repository"
)


def tone(seconds: float, hertz: float = 220.0, level: float = 0.3) -> FloatArray:
    """A buzz with harmonics and a slow beat, so that no two pieces of it are alike."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, 9))
    return np.asarray(level * buzz * (1 + 0.5 * np.sin(2 * np.pi * 3 * time)) / 3, dtype=np.float32)


def silence(seconds: float) -> FloatArray:
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> FloatArray:
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def write_speakers(root: Path, speakers: int = 2, utterances: int = 2) -> None:
    """Write root/sN/uM.wav, every one a different tone of 1.2 s."""
    for speaker in range(speakers):
        for number in range(utterances):
            path = root / f"s{speaker}" / f"u{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_audio(path, tone(1.2, hertz=100 + 40 * speaker + 7 * number))
