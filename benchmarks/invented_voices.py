"""Invented voices a second on one core, the memory that they take, and a training step's time.

    python benchmarks/invented_voices.py [--model FILE] [--json FILE]

What counts is processor time, so that other work on the machine disturbs the figures little.
`gan.md` has the figures, and those of the real training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedspk.feature_table import FeatureTable
from fedspk.features import FrontEndConfig, normalise
from fedspk.files import write_json
from fedspk.generator_description import NetworkConfig
from gan.generator_file import load_generator, packaged_generator
from gan.patches import SpeakerPatches
from gan.sampling import InventedVoices
from gan.training import GanTrainer, GanTraining

_TURNS = 5
_PATCHES = 40


def main() -> None:
    """Measure, and print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=packaged_generator())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    voices = InventedVoices(load_generator(arguments.model), seed=1)
    found = {
        "megabytes": arguments.model.stat().st_size / 1e6,
        "parameters": sum(weight.numel() for weight in voices.generator.parameters()),
        "patches_per_second": _PATCHES / _seconds(lambda: _draw(voices, _PATCHES)),
        "peak_megabytes_of_900": _peak(voices) / 1e6,
        "step_seconds_float32": _step_seconds("float32"),
        "step_seconds_bfloat16": _step_seconds("bfloat16"),
    }
    for name, value in found.items():
        print(f"{name:<24} {value:,.3f}")
    if arguments.json:
        write_json(arguments.json, found)


def _seconds(work: Callable[[], object]) -> float:
    """Return the processor time of the fastest of some turns."""
    turns = []
    for _ in range(_TURNS):
        started = time.process_time()
        work()
        turns.append(time.process_time() - started)
    return min(turns)


def _draw(voices: InventedVoices, count: int) -> None:
    for _ in voices.batches(count, speakers=count):
        pass


def _peak(voices: InventedVoices) -> float:
    """Return the bytes of patches that are alive at once while 900 are drawn lazily."""
    tracemalloc.start()
    alive = max(patches.nbytes for patches, _ in voices.batches(900, speakers=90))
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return alive + python


def _step_seconds(precision: str) -> float:
    """Return the processor time of one step of the default training, on noise."""
    front_end = FrontEndConfig()
    noise = torch.randn(32, front_end.frames, front_end.bins)
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "pack.npy"
        np.save(pack, normalise(noise, "mean-variance").numpy().astype(np.float16))
        table = FeatureTable([pack], np.zeros(32), np.arange(32))
        patches = SpeakerPatches(table, tuple((i, i + 16) for i in range(16)))
        trainer = GanTrainer(patches, front_end, NetworkConfig(), GanTraining(precision=precision))
        return _seconds(lambda: trainer.run(2)) / 2


if __name__ == "__main__":
    main()
