"""A folder that is never on a disk, for what must not outlive the process that needs it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedspk.errors import FedspkError

_PREFIX = "fedspk-memory-"
_IN_MEMORY = ("tmpfs", "ramfs")


@contextmanager
def memory_folder() -> Iterator[Path]:
    """Yield an empty folder in memory, this user's alone, which is deleted at the end.

    What killed processes left of theirs is deleted too, unless somebody still shares the lock on
    the file `lock` in it.

    Raises:
        FedspkError: this machine offers no folder in memory.
    """
    parent = _parent()
    _delete_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # mode 0700
    try:
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            lock.write(b"locked\n")
            lock.flush()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Path:
    for candidate in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):
        path = Path(candidate or "/nowhere")
        if path.is_dir() and os.access(path, os.W_OK) and _file_system(path) in _IN_MEMORY:
            return path
    raise FedspkError(
        "neither XDG_RUNTIME_DIR nor /dev/shm is a folder in memory (tmpfs) that this user may "
        "write; what a voice gives away is not written to a disk."
    )


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds a path; of two mounts the later one counts."""
    best, kind = -1, ""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        place, _, described = line.partition(" - ")
        mount = Path(place.split()[4].encode().decode("unicode_escape"))
        if path.resolve().is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), described.split()[0]
    return kind


def _delete_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.geteuid():
                continue
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock.fileno()).st_size:  # its owner has locked it once
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, or just being made or deleted
            continue
