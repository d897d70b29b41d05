"""Files that are either whole or absent: temporary file, fsync, rename."""

from __future__ import annotations

import errno
import glob
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fedspk.errors import FedspkError


class DiskFullError(FedspkError):
    """There is no room for a file."""


PARTIAL = ".partial"
"""How the names of unfinished files end: what a power cut leaves of them can be deleted."""


@contextmanager
def atomic_write(path: Path, mode: int = 0o644, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `path` only when the block ends without an error.

    With `durable` off, a power cut may leave a torn file: for content that is checked by hash.

    Raises:
        FedspkError: the folder cannot be written, or the disk is full; `path` is then untouched.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent
        )
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        temporary = None
        if durable:
            sync(path.parent)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_partial(path: Path) -> None:
    """Delete what killed processes left of their writes to `path`; nobody may be writing it."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` to `path` atomically."""
    with atomic_write(path, mode) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FedspkError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise FedspkError(f"{path}: is not valid JSON ({error}).") from error


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(error: OSError, path: Path) -> FedspkError:
    """Return why a file cannot be written, in a sentence."""
    # NumPy reports a write that was cut short without an error number.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, None):
        return DiskFullError(f"{path}: the disk is full; free some space and run again.")
    return FedspkError(f"{path}: cannot be written ({error.strerror}).")
