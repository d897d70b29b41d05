"""Drawn patches as a file: written batch by batch, so that they are never all in memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from fedspk.errors import FedspkError
from fedspk.files import atomic_write
from fedspk.progress import progress
from gan.sampling import InventedVoices


def write_samples(path: Path, voices: InventedVoices, count: int, speakers: int) -> None:
    """Write a safetensors file of `patches` (count, frames, bins) float16 and `speakers` (count,).

    Raises:
        FedspkError: a number is not positive, or the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise FedspkError(f"{path}: give --out a file name that ends in .safetensors.")
    front_end = voices.generator.front_end
    shape = (count, front_end.frames, front_end.bins)
    size = 2 * count * front_end.frames * front_end.bins
    header = {
        "__metadata__": {"seed": str(voices.seed)},
        "patches": {"dtype": "F16", "shape": shape, "data_offsets": [0, size]},
        "speakers": {"dtype": "I64", "shape": [count], "data_offsets": [size, size + 8 * count]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers: list[int] = []
    with (
        atomic_write(path) as file,
        progress(total=count, description="Drawing voices", unit="patch") as bar,
    ):
        file.write(struct.pack("<Q", len(text)) + text)
        for patches, drawn in voices.batches(count, speakers):
            file.write(patches.numpy().astype("<f2").tobytes())
            numbers += drawn
            bar.update(len(drawn))
        file.write(np.array(numbers, dtype="<i8").tobytes())
