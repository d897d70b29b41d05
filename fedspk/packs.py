"""Packs: many arrays in few files that every process maps read-only.

A pack is `<digest>.npy` (the arrays, one after the other) and `<digest>.json` (which key stands
where, and how long the first file must be). Rules:

- A pack is named by the hash of its content and never changes. Two processes that build the same
  one write the same bytes; there are no locks.
- The index is written after the array, each whole or not at all.
- A pack whose array is missing, has the wrong length, or (on request) the wrong content is
  forgotten, and its keys are simply built again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.files import atomic_write, write_text

Array: TypeAlias = npt.NDArray[Any]
Entry: TypeAlias = Any  # what an index says about a key: plain JSON


@dataclass(frozen=True)
class Place:
    """Where a key stands: the pack's array file, and the index's entry."""

    pack: Path
    entry: Entry


def write_pack(folder: Path, array: Array, entries: Mapping[str, Entry]) -> Path:
    """Write one pack and return its array file.

    Raises:
        FedspkError: the disk is full, or the folder cannot be written.
    """
    index = json.dumps(entries, sort_keys=True)
    name = _digest(array, index)
    path = folder / f"{name}.npy"
    with atomic_write(path) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        length = file.tell()
    write_text(path.with_suffix(".json"), json.dumps({"bytes": length, "entries": entries}))
    return path


def read_index(folder: Path, *, known: frozenset[Path] = frozenset()) -> dict[Path, dict[str, Any]]:
    """Return the entries of every whole pack in `folder` that is not `known`; drop broken ones."""
    found: dict[Path, dict[str, Any]] = {}
    for index in sorted(folder.glob("*.json")):
        pack = index.with_suffix(".npy")
        if pack in known:
            continue
        entries = _entries(index, pack)
        if entries is None:
            drop_pack(pack)
        else:
            found[pack] = entries
    return found


def drop_pack(pack: Path) -> None:
    """Forget a pack; whoever has it mapped keeps reading it."""
    pack.with_suffix(".json").unlink(missing_ok=True)
    open_pack.cache_clear()
    is_intact.cache_clear()


@functools.cache
def open_pack(pack: Path) -> Array:
    """Map a pack's array read-only.

    Raises:
        FedspkError: the file is gone or damaged.
    """
    try:
        array: Array = np.load(pack, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FedspkError(
            f"{pack}: this part of the cache is missing or damaged; run again to rebuild it."
        ) from error
    return array


@functools.cache
def is_intact(pack: Path) -> bool:
    """Say whether the content still has the hash that names it; reads it all, once per process."""
    try:
        index = json.loads(pack.with_suffix(".json").read_text())["entries"]
        return _digest(open_pack(pack), json.dumps(index, sort_keys=True)) == pack.stem
    except (OSError, ValueError, KeyError, TypeError, FedspkError):
        return False


def _digest(array: Array, index: str) -> str:
    digest = hashlib.blake2b(f"{array.dtype}{array.shape}{index}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _entries(index: Path, pack: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(index.read_text())
        whole = pack.stat().st_size == content["bytes"]
        entries: dict[str, Any] = content["entries"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entries if whole else None
