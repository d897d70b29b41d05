"""The audit log: one line of JSON for every change, appended and on the disk before the change."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedspk.errors import FedspkError

_BLOCK = 64 * 1024  # bytes read at once


class AuditLog:
    """Lines of `time`, `who`, `action` and more.

    A change of the repository also has `timestamp`, the metadata version it leads to; one that was
    killed before that version appeared gets a line `interrupted`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[dict[str, Any]]:
        """Return all lines, oldest first; one torn by a power cut is left out."""
        return [entry for _, entry in self._backwards()][::-1]

    def page(
        self, count: int, before: int | None = None
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Return the latest lines, newest first, and where older ones go on.

        Args:
            count: at most so many.
            before: what the page before returned; None for the newest. The answer is None after
                the oldest.
        """
        found, start = [], None
        for start, entry in self._backwards(before):  # noqa: B007
            found.append(entry)
            if len(found) == count:
                break
        return found, start or None

    def append(self, action: str, timestamp: int, who: str | None = None, **details: Any) -> None:
        """Add a change of the repository and wait until the line is on the disk.

        Args:
            action: what is to be done.
            timestamp: the metadata version it leads to.
            who: an operator of the API; None for the user of this process.
            details: what else is to be known.

        Raises:
            FedspkError: the log cannot be written.
        """
        self._write({"action": action, "timestamp": timestamp, **details}, who)

    def note(self, action: str, who: str | None = None, **details: Any) -> None:
        """Add what changes nothing that devices fetch, in the same way.

        Raises:
            FedspkError: the log cannot be written.
        """
        self._write({"action": action, **details}, who)

    def settle(self, timestamp: int) -> None:
        """Mark the last change as interrupted if the version it leads to never appeared."""
        last = next((entry for _, entry in self._backwards() if "timestamp" in entry), None)
        if last and last["action"] != "interrupted" and last["timestamp"] > timestamp:
            self.append("interrupted", timestamp, of=last["action"])

    def _write(self, entry: dict[str, Any], who: str | None) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": time, "who": who or _user(), **entry}, sort_keys=False) + "\n"
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":  # torn by a power cut
                    line = "\n" + line
                rest = memoryview(line.encode())
                while rest:  # a full disk first takes a part, then nothing
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FedspkError(f"{self._path}: cannot be written ({error.strerror}).") from error

    def _backwards(self, end: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield where lines before `end` start, and what they say, newest first."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            position = file.seek(0, os.SEEK_END)
            position = position if end is None else min(position, end)
            rest = b""  # of a line that starts further ahead
            while position > 0:
                start = max(0, position - _BLOCK)
                file.seek(start)
                block = file.read(position - start) + rest
                offset = start + len(block)
                rest, *lines = block.split(b"\n") if start else [b"", *block.split(b"\n")]
                for line in reversed(lines):
                    offset -= len(line)
                    entry = _parsed(line)
                    if entry is not None:
                        yield offset, entry
                    offset -= 1
                position = start


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _user() -> str:
    """Return who runs this process; with sudo, also who that was at first."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without a name
        name = str(os.getuid())
    before = os.environ.get("SUDO_USER")
    return f"{name} (sudo: {before})" if before and os.getuid() == 0 else name
