"""A table of examples: rows of memory-mapped packs, in the order in which they were asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fedspk.errors import FedspkError
from fedspk.files import read_json, write_text
from fedspk.packs import open_pack

IntArray: TypeAlias = npt.NDArray[np.integer[Any]]


class FeatureTable:
    """Examples (frames, bins) by row number; many processes can open the same table.

    Row i stands in `packs[pack[i]]` at position `row[i]`.
    """

    def __init__(self, packs: Sequence[Path], pack: IntArray, row: IntArray) -> None:
        self.packs = tuple(packs)
        self._pack = np.asarray(pack, dtype=np.int32)
        self._row = np.asarray(row, dtype=np.int32)

    @classmethod
    def of_places(cls, places: Sequence[tuple[Path, int]]) -> FeatureTable:
        """Return the table whose row i stands in pack `places[i][0]` at position `places[i][1]`."""
        packs = sorted({pack for pack, _ in places})
        number = {pack: i for i, pack in enumerate(packs)}
        return cls(
            packs,
            np.array([number[pack] for pack, _ in places], dtype=np.int32),
            np.array([row for _, row in places], dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self._row)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, frames, bins)."""
        if not self.packs:
            return (0, 0, 0)
        _, frames, bins = open_pack(self.packs[0]).shape
        return (len(self), int(frames), int(bins))

    def gather(self, indices: IntArray | Sequence[int]) -> torch.Tensor:
        """Read rows: (B, frames, bins) float32, a copy.

        Raises:
            FedspkError: a pack is gone.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        _, frames, bins = self.shape
        rows = np.empty((len(wanted), frames, bins), dtype=np.float16)
        for position, index in enumerate(wanted):
            rows[position] = open_pack(self.packs[self._pack[index]])[self._row[index]]
        return torch.from_numpy(rows).float()

    def save(self, path: Path) -> None:
        """Write a small JSON file by which another process maps the same packs."""
        content = {
            "packs": [str(pack) for pack in self.packs],
            "pack": self._pack.tolist(),
            "row": self._row.tolist(),
        }
        write_text(path, json.dumps(content))

    @classmethod
    def open(cls, path: Path) -> FeatureTable:
        """Read what `save` wrote.

        Raises:
            FedspkError: the file is missing or is no feature table.
        """
        content = read_json(path)
        try:
            packs = [Path(name) for name in content["packs"]]
            return cls(packs, np.array(content["pack"]), np.array(content["row"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FedspkError(f"{path}: is not a feature table; write it again.") from error
