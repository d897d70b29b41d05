"""What this party remembers of the releases that it signed, beside its key.

A main server that shows an older state, or another history, to a run that starts without metadata
of its own would have this party sign anew what it signed already.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tuf.api.metadata import Metadata, Targets

from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json


class SignedMemory:
    """The last release that was seen published, in a file beside the private key.

    Args:
        key: the file of the private key; the memory is `<key>.signed.json`.
    """

    def __init__(self, key: Path) -> None:
        self._path = Path(key).with_name(Path(key).name + ".signed.json")

    def is_first(self) -> bool:
        """Say whether no release was ever seen: the next one may be the very first."""
        return self._last() is None

    def check(self, release: Metadata[Targets] | None) -> None:
        """Accept a release that a new one may follow: the remembered one or a later one.

        Raises:
            FedspkError: it is older than the remembered one, or another of the same version.
        """
        last = self._last()
        if last is None:
            return
        shown = (release.signed.version, _hash(release)) if release else (0, "")
        if shown[0] < last[0] or (shown[0] == last[0] and shown[1] != last[1]):
            raise FedspkError(
                f"the server shows release {shown[0]}, but {self._path} remembers another release "
                f"{last[0]}; nothing is signed. If the server was put back from a backup, let it "
                "publish what it lost, or delete that file."
            )

    def keep(self, release: Metadata[Targets]) -> None:
        """Remember a release that the server shows, signed by both parties.

        Raises:
            FedspkError: the file cannot be written.
        """
        found = (release.signed.version, _hash(release))
        if found != self._last():
            write_json(self._path, {"version": found[0], "sha256": found[1]})

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
