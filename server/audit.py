"""The audit log: one line of JSON for every change, appended and on the disk before the change."""

from __future__ import annotations

import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedspk.errors import FedspkError

_LONGEST = 64 * 1024  # bytes of the longest line


class AuditLog:
    """Lines of `time`, `who`, `action`, `timestamp` (the metadata version it leads to) and more.

    A change that was killed before that version appeared gets a line `interrupted`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[dict[str, Any]]:
        """Return all lines, oldest first; one torn by a power cut is left out."""
        try:
            return _parsed(self._path.read_bytes())
        except FileNotFoundError:
            return []

    def append(self, action: str, timestamp: int, **details: Any) -> None:
        """Add a line and wait until it is on the disk.

        Raises:
            FedspkError: the log cannot be written.
        """
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "who": _who(),
            "action": action,
            "timestamp": timestamp,
            **details,
        }
        line = json.dumps(entry, sort_keys=False) + "\n"
        before = self._tail()
        if before and not before.endswith(b"\n"):
            line = "\n" + line
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                os.write(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FedspkError(f"{self._path}: cannot be written ({error.strerror}).") from error

    def settle(self, timestamp: int) -> None:
        """Mark the last change as interrupted if the version it leads to never appeared."""
        entries = _parsed(self._tail())
        last = entries[-1] if entries else None
        if last and last["action"] != "interrupted" and last["timestamp"] > timestamp:
            self.append("interrupted", timestamp, of=last["action"])

    def _tail(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST))
                return file.read()
        except FileNotFoundError:
            return b""


def _parsed(lines: bytes) -> list[dict[str, Any]]:
    found = []
    for line in lines.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())
