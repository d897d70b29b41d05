"""Model files that were uploaded and wait to be published, by their SHA-256.

    DIR/uploads/<sha256>             whole and checked
    DIR/uploads/.<random>.incoming   on its way

What nobody publishes is deleted after `KEPT`. So that a token that leaks fills no disk, and
metadata can still be signed again, all together take `MOST_WAITING` in `MOST_FILES` at most, and
leave `LEAST_FREE` of the disk, or `LEAST_SHARE` of a small one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from fedspk.errors import FedspkError
from fedspk.files import explained, sync
from server.faults import ConflictError, NotFoundError

KEPT = timedelta(days=1)
MOST_WAITING = 16 << 30  # bytes
MOST_FILES = 256
LEAST_FREE = 1 << 30  # bytes
LEAST_SHARE = 0.05  # of a disk that is small for that


class Uploads:
    """The files in a folder, which is made when the first comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> Incoming:
        """Return a file to write to.

        Raises:
            FedspkError: it cannot be made.
        """
        self.remove_old(datetime.now().astimezone())
        return Incoming(self._folder)

    def path(self, sha256: str) -> Path:
        """Return a whole file.

        Raises:
            NotFoundError: it was never uploaded, or has been published or deleted since.
        """
        path = self._folder / sha256
        if not path.is_file():
            raise NotFoundError(f"there is no upload {sha256}; send it with PUT /uploads first.")
        return path

    def remove(self, sha256: str) -> None:
        """Delete a file that has been published."""
        (self._folder / sha256).unlink(missing_ok=True)

    def remove_old(self, now: datetime) -> None:
        """Delete what nobody published."""
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            try:
                if path.stat().st_mtime < (now - KEPT).timestamp():
                    path.unlink()
            except FileNotFoundError:
                continue  # another request was faster


class Incoming:
    """An upload on its way; `with` deletes it unless it was kept.

    Raises (all methods):
        FedspkError: the disk is full, or cannot be written.
        ConflictError: too much waits already.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f".{secrets.token_hex(8)}.incoming"
        self._digest = hashlib.sha256()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._file = self._path.open("xb")
        except OSError as error:
            raise self._explained(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written is deleted
            self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, block: bytes) -> None:
        """Add to the file."""
        self._digest.update(block)
        try:
            self._check_room(len(block))
            self._file.write(block)
        except OSError as error:
            raise self._explained(error) from error

    def _check_room(self, length: int) -> None:
        disk = shutil.disk_usage(self._folder)
        if disk.free - length < min(LEAST_FREE, LEAST_SHARE * disk.total):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        waiting = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # published meanwhile
                waiting.append(path.stat().st_size)
        if len(waiting) > MOST_FILES or sum(waiting) + length > MOST_WAITING:
            raise ConflictError(
                f"{MOST_FILES} uploads, or {MOST_WAITING >> 20} MiB of them, wait already; publish "
                "them, or try again when they have been deleted."
            )

    def keep(self, sha256: str) -> tuple[int, bool]:
        """Keep the file if it has this hash; return its length, and whether it is new.

        Raises:
            FedspkError: it has another hash.
        """
        if self._digest.hexdigest() != sha256:
            raise FedspkError(
                f"the upload has the SHA-256 {self._digest.hexdigest()}, not {sha256}; "
                "it was altered on its way, or is another file."
            )
        path = self._folder / sha256
        try:
            length, is_new = self._file.tell(), not path.exists()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._path.replace(path)
            sync(self._folder)
        except OSError as error:
            raise self._explained(error) from error
        return length, is_new

    def _explained(self, error: OSError) -> FedspkError:
        return explained(error, self._folder)
