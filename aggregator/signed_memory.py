"""What this party remembers of the releases that it signed, beside its key.

A main server that shows an older state, or another history, to a run that starts without metadata
of its own would have this party sign anew what it signed already.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuf.api.metadata import Metadata, Targets

from fedspk.errors import FedspkError
from fedspk.files import explained, read_json, write_json


class OtherReleaseError(FedspkError):
    """A server shows what no new release may follow."""


class SignedMemory:
    """The last release that was seen published, in a file beside the private key.

    Several runs with that key may share it.

    Args:
        key: the file of the private key; the memory is `<key>.signed.json`.
    """

    def __init__(self, key: Path) -> None:
        self._path = Path(key).with_name(Path(key).name + ".signed.json")

    def is_first(self) -> bool:
        """Say whether no release was ever seen: the next one may be the very first."""
        return self._last() is None

    def accept(self, release: Metadata[Targets] | None) -> None:
        """Accept the release that a server shows if a new one may follow it, and remember it.

        Args:
            release: signed by both parties; None for none at all.

        Raises:
            OtherReleaseError: it is older than the remembered one, or another of the same version.
            FedspkError: the memory cannot be read or written.
        """
        with self._alone():
            last = self._last()
            shown = (release.signed.version, _hash(release)) if release else (0, "")
            if last and shown != last and shown[0] <= last[0]:
                raise OtherReleaseError(
                    f"the server shows release {shown[0]}, but {self._path} remembers another "
                    f"release {last[0]}; nothing is signed. If the server was put back from a "
                    "backup, let it publish what it lost, or delete that file."
                )
            if release and shown != last:
                write_json(self._path, {"version": shown[0], "sha256": shown[1]})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one run at a time judge and remember."""
        path = self._path.with_suffix(".lock")
        try:
            lock = path.open("wb")
        except OSError as error:
            raise explained(error, path) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _last(self) -> tuple[int, str] | None:
        if not self._path.exists():
            return None
        try:
            found = read_json(self._path)
            return int(found["version"]), str(found["sha256"])
        except (KeyError, TypeError, ValueError) as error:
            raise FedspkError(
                f"{self._path}: is not a memory of releases; delete it if the server is right."
            ) from error


def _hash(release: Metadata[Targets]) -> str:
    return hashlib.sha256(release.signed_bytes).hexdigest()
