"""A folder of arrays by content hash, written once and mapped read-only by all workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.files import atomic_write, sync

Number = TypeVar("Number", bound=np.generic)


class ArrayStore(Generic[Number]):
    """Flat arrays of one type.

    An array torn by a power cut fails its hash and can be put again; `sync` the ones that cannot be
    made again. What is not kept longer than a run needs no such check.

    Raises (all methods):
        FedspkError: an array is missing or damaged, or cannot be written.
    """

    dtype: np.dtype[Number]
    suffix: str
    what: str
    is_kept = True

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._verified: set[str] = set()

    def path(self, digest: str) -> Path:
        """Return where the array of this hash lies."""
        if len(digest) != 64 or not all(character in "0123456789abcdef" for character in digest):
            raise FedspkError(f"{digest!r} is not a content hash (64 hex digits).")
        return self.root / f"{digest}{self.suffix}"

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()

    def put(self, array: npt.ArrayLike) -> str:
        """Store a non-empty array (n,) and return its hash."""
        array = np.ascontiguousarray(array, dtype=self.dtype)
        if array.ndim != 1 or array.size == 0:
            raise FedspkError(f"{self.what} must be flat and not empty.")
        digest = array_hash(array)
        path = self.path(digest)
        if not self._holds(path, digest):
            with atomic_write(path, durable=False) as file:
                file.write(array.data)
            self._verified.add(digest)
        return digest

    def get(self, digest: str) -> npt.NDArray[Number]:
        """Return the array of this hash, mapped read-only; its hash is checked once a process."""
        path = self.path(digest)
        try:
            array: npt.NDArray[Number] = np.memmap(path, dtype=self.dtype, mode="r")
        except (OSError, ValueError) as error:
            raise FedspkError(f"{path}: {self.what} is missing or empty.") from error
        if self.is_kept and digest not in self._verified:
            if array_hash(array) != digest:
                raise FedspkError(f"{path}: {self.what} is damaged; delete the file and run again.")
            self._verified.add(digest)
        return array

    def sync(self, digests: Iterable[str]) -> None:
        """Wait until these arrays are on the disk."""
        paths = [self.path(digest) for digest in digests]
        try:
            for path in paths:
                sync(path)
            if paths:
                sync(self.root)
        except OSError as error:
            raise FedspkError(f"{self.root}: cannot be written ({error.strerror}).") from error

    def remove(self, digest: str) -> None:
        """Delete the array of this hash if it is there; maps already open stay valid."""
        self.path(digest).unlink(missing_ok=True)
        self._verified.discard(digest)

    def clear(self) -> None:
        """Delete all arrays of this type."""
        for path in self.root.glob(f"*{self.suffix}"):
            path.unlink(missing_ok=True)
        self._verified.clear()

    def _holds(self, path: Path, digest: str) -> bool:
        if not path.exists():
            return False
        try:
            self.get(digest)
        except FedspkError:
            return False
        return True


class BlobStore(ArrayStore[np.uint8]):
    """Bytes on their way to another process of a run, read once: masked vectors.

    None of them outlives the run, so that no power cut can have torn it: its hash is but its name.
    """

    dtype = np.dtype(np.uint8)
    suffix = ".bin"
    what = "a blob"
    is_kept = False


def array_hash(array: npt.NDArray[Any]) -> str:
    """Return the SHA-256 of a contiguous array's bytes, in hex."""
    return hashlib.sha256(array.data).hexdigest()
