"""Publishing on the main server: a release that this party signs, and the server signs too.

Publishing may be repeated: each attempt looks at the verified present release first, so that a
reply that was lost, or another's change in between, does no harm. What the server answers is not
believed: a release is published when the verified metadata show it.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aggregator.signed_memory import OtherReleaseError, SignedMemory
from fedspk.api import API, ProposedRelease
from fedspk.connection import Connection, VersionsUnreachable
from fedspk.errors import FedspkError
from fedspk.proposals import Content, Proposal
from fedspk.remote import RemoteVersions
from fedspk.signing import load_key, read_secret

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

ATTEMPTS = 8
LONGEST_WAIT_S = 30.0
"""Between two attempts, of which the first wait is a second and each further one twice as long."""

_log = logging.getLogger("flwr")
_CHANGED = 409


class MainServer:
    """A main server, to one of the two parties that sign its releases.

    Args:
        versions: its verified versions.
        connection: to it.
        token: of an operator with the role "aggregator".
        signer: this party's key.
        memory: of the releases that it signed.
    """

    def __init__(
        self,
        versions: RemoteVersions,
        connection: Connection,
        token: str,
        signer: CryptoSigner,
        memory: SignedMemory,
    ) -> None:
        self._versions = versions
        self._connection = connection
        self._token = token
        self._signer = signer
        self._memory = memory

    @classmethod
    def open(
        cls,
        address: str,
        folder: Path,
        *,
        root: Path,
        key: Path,
        token: Path,
        passphrase: Path | None = None,
        ca: Path | None = None,
    ) -> MainServer:
        """Return the server at an address.

        Args:
            address: its base URL.
            folder: where its verified metadata are kept.
            root: the root metadata to trust first.
            key: this party's private key, and `passphrase` the file of its passphrase.
            token: the file of the operator's token.
            ca: certificates to trust in place of the system's.

        Raises:
            FedspkError: a file is missing, wrong, or readable by others.
        """

        def secret(of: Path) -> bytes:
            if passphrase is None:
                raise FedspkError(f"{of}: is encrypted; name the file of its passphrase.")
            return read_secret(passphrase).strip()

        try:
            trusted = Path(root).read_bytes()
        except OSError as error:
            raise FedspkError(f"{root}: cannot be read ({error.strerror}).") from error
        return cls(
            RemoteVersions(address, folder, trusted, ca),
            Connection(address, ca),
            read_secret(token).decode(errors="replace").strip(),
            load_key(key, secret),
            SignedMemory(key),
        )

    @property
    def versions(self) -> RemoteVersions:
        """What is published, verified."""
        return self._versions

    def publish(self, make: Callable[[RemoteVersions], Proposal | None]) -> None:
        """Publish what `make` proposes after the present release; None: it is there already.

        Args:
            make: called before every attempt, and once more when the server says that it is done.

        Raises:
            FedspkError: the server refuses it, or stays away, or shows an older release than it
                did, or others keep changing the release.
        """
        for attempt in range(ATTEMPTS):
            try:
                proposal = self._look(make)
                if proposal is None:
                    return
                self._send(proposal)
                if self._look(make) is None:
                    _log.info("Release %d is published.", proposal.release.signed.version)
                    return
                raise _ChangedError(
                    f"{self._connection.address}: took the release, but its metadata do not show "
                    "it, or show a later one."
                )
            except (VersionsUnreachable, _ChangedError) as error:
                if attempt == ATTEMPTS - 1:
                    raise FedspkError(
                        f"after {ATTEMPTS} attempts nothing is published: {error}"
                    ) from error
                wait = min(2.0**attempt, LONGEST_WAIT_S)
                _log.info("%s Next attempt in %g s.", error, wait)
                time.sleep(wait)

    def _look(self, make: Callable[[RemoteVersions], Proposal | None]) -> Proposal | None:
        """Return what remains to be published after the present release."""
        try:
            self._accept_present()
        except OtherReleaseError:
            # Another run with this key may have published after the look, and remembered that.
            self._accept_present()
        return make(self._versions)

    def _accept_present(self) -> None:
        self._versions.refresh()
        self._memory.accept(self._versions.release())

    def _send(self, proposal: Proposal) -> None:
        proposal.check()
        is_first = proposal.base is None and self._memory.is_first()
        proposal.check_base([self._signer.public_key], is_first=is_first)
        proposal.sign([self._signer])
        small: dict[str, Content] = {}
        for path, content in proposal.files.items():
            if isinstance(content, Path):
                digest = proposal.release.signed.targets[path].hashes["sha256"]
                self._ask("PUT", f"/uploads/{digest}", content.read_bytes(), "octet-stream")
            else:
                small[path] = base64.b64encode(content)
        message = ProposedRelease(release=proposal.release.to_bytes().decode(), files=small)
        self._ask("POST", "/proposals", message.to_json(), "json")

    def _ask(self, method: str, path: str, body: bytes, kind: str) -> None:
        url = f"{self._connection.address}{API}{path}"
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": f"application/{kind}",
        }
        status, answer = self._connection.send(method, url, body, headers)
        if 200 <= status < 300:
            return
        sentence = f"{self._connection.address}: {_reason(answer)} (status {status})."
        if status == _CHANGED:
            raise _ChangedError(sentence)
        if status >= 500 or status == 429:
            raise VersionsUnreachable(sentence)
        raise FedspkError(sentence)


class _ChangedError(FedspkError):
    """The release is not the one any more that was to be followed."""


def _reason(answer: bytes) -> str:
    """Return the sentence of a refusal, without its full stop."""
    try:
        return str(json.loads(answer)["error"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return "the answer is not that of a main server"
