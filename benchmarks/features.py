"""Clips of 3.5 s per second on one thread: fedspk's front ends against librosa and torchaudio.

    python benchmarks/features.py [--seconds 3] [--json FILE]

Every contender gets the same batch of clips, again and again and in turns. What counts is the
processor time of its fastest batch, so that other work on the machine disturbs the figures little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch

from fedspk.features import FrontEndConfig, build_front_end
from fedspk.files import write_json
from fedspk.torchaudio_compat import import_torchaudio, torchaudio_status

TURNS = 5
CLIPS = 16


@dataclass(frozen=True)
class Contender:
    """One way to compute what `group` says, for a batch (B, samples)."""

    group: str
    name: str
    compute: Callable[[torch.Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each contender")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    time_axis = np.arange(FrontEndConfig().samples) / 16_000
    rng = np.random.default_rng(0)
    clips = 0.05 * rng.standard_normal((CLIPS, len(time_axis)))
    clips += 0.2 * np.sin(2 * np.pi * rng.uniform(90, 250, (CLIPS, 1)) * time_axis)
    rates = _measure(list(_contenders()), torch.from_numpy(clips).float(), options.seconds)
    print(_table(rates))
    print(
        f"\nOne thread, torch {torch.__version__}, librosa {version('librosa')}, "
        f"{torchaudio_status()}."
    )
    if options.json:
        write_json(
            options.json,
            [
                {"front_end": contender.group, "name": contender.name, "clips_per_second": rate}
                for contender, rate in rates.items()
            ],
        )


def _contenders() -> Iterator[Contender]:
    torchaudio = import_torchaudio()
    from torchaudio.compliance import kaldi

    spectrum: dict[str, Any] = {"n_fft": 512, "win_length": 480, "hop_length": 160}
    mel = {**spectrum, "pad_mode": "constant", "mel_scale": "slaney", "norm": "slaney"}

    def librosa_log_mel(clip: torch.Tensor) -> object:
        energies = librosa.feature.melspectrogram(y=clip.numpy(), sr=16_000, n_mels=80, **spectrum)
        return np.log(np.maximum(energies, 1e-10))

    def librosa_mfcc(clip: torch.Tensor) -> object:
        return librosa.feature.mfcc(y=clip.numpy(), sr=16_000, n_mfcc=23, n_mels=40, **spectrum)

    def kaldi_fbank(clip: torch.Tensor) -> object:
        return kaldi.fbank(clip[None], num_mel_bins=80, snip_edges=False)

    transforms = torchaudio.transforms
    log_mel = transforms.MelSpectrogram(sample_rate=16_000, n_mels=80, **mel)
    mfcc = transforms.MFCC(16_000, n_mfcc=23, log_mels=True, melkwargs={"n_mels": 40, **mel})

    yield from _ours("log-mel, 80 bands", FrontEndConfig(normalise="none"))
    yield Contender("log-mel, 80 bands", "torchaudio, a batch", lambda batch: log_mel(batch).log())
    yield Contender("log-mel, 80 bands", "torchaudio, a clip", _each(lambda x: log_mel(x).log()))
    yield Contender("log-mel, 80 bands", "librosa", _each(librosa_log_mel))
    yield from _ours("MFCC, 23", FrontEndConfig("mfcc", bins=23, normalise="none"))
    yield Contender("MFCC, 23", "torchaudio, a batch", mfcc)
    yield Contender("MFCC, 23", "torchaudio, a clip", _each(mfcc))
    yield Contender("MFCC, 23", "librosa", _each(librosa_mfcc))
    yield from _ours(
        "Kaldi fbank, 80 bands", FrontEndConfig("fbank", window_s=0.025, normalise="none")
    )
    yield Contender("Kaldi fbank, 80 bands", "torchaudio, a clip", _each(kaldi_fbank))


def _ours(group: str, config: FrontEndConfig) -> Iterator[Contender]:
    front_end = build_front_end(config)
    yield Contender(group, "fedspk, a batch", front_end)
    yield Contender(group, "fedspk, a clip", _each(lambda clip: front_end(clip[None])))


def _each(compute: Callable[[torch.Tensor], object]) -> Callable[[torch.Tensor], object]:
    return lambda batch: [compute(clip) for clip in batch]


@torch.inference_mode()
def _measure(
    contenders: list[Contender], clips: torch.Tensor, seconds: float
) -> dict[Contender, float]:
    """Return every contender's clips per second of processor time: its best batch."""
    shortest = dict.fromkeys(contenders, float("inf"))
    for _ in range(TURNS):
        for contender in contenders:
            contender.compute(clips)
            end = time.monotonic() + seconds / TURNS
            while time.monotonic() < end:
                start = time.process_time()
                contender.compute(clips)
                shortest[contender] = min(shortest[contender], time.process_time() - start)
    return {contender: len(clips) / spent for contender, spent in shortest.items()}


def _table(rates: dict[Contender, float]) -> str:
    lines = [
        "| front end | implementation | clips/s | fedspk's batch is faster by |",
        "|---|---|---|---|",
    ]
    ours = {contender.group: rate for contender, rate in reversed(rates.items())}
    for contender, rate in rates.items():
        ratio = ours[contender.group] / rate
        lines.append(f"| {contender.group} | {contender.name} | {rate:.0f} | x {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
