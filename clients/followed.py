"""Which main server a device follows, whether that knows it, and how the last look went: sealed."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.vault import Vault, VaultError
from clients.versions import Version, read_versions
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from fedspk.api import Failure
    from fedspk.release import ChannelName

_LOG = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(hours=1), timedelta(days=7)


@dataclass(frozen=True)
class MainServer:
    """A main server that a device follows.

    Args:
        address: its base URL.
        root: the root metadata that the device trusts, as JSON.
        ca: file of the certificates (PEM) to trust in place of the system's.
    """

    address: str
    root: bytes
    ca: Path | None = None


@dataclass(frozen=True)
class Trouble:
    """Why a device could not follow.

    Args:
        failure: in one word.
        sentence: for the owner.
        version: that would not do; None if it did not come to one.
        client: the fedspk that tried.
        tries: how often that was.
        since: when it was tried last, in UTC.
    """

    failure: Failure
    sentence: str
    version: int | None
    client: str
    tries: int
    since: datetime

    def is_about(self, failure: Failure, version: int | None) -> bool:
        """Say whether this is the same trouble with the same version."""
        return (self.failure, self.version) == (failure, version)

    def pause(self) -> timedelta:
        """Return how long the version is left alone: an hour, then twice as long, up to a week."""
        return min(_FIRST_PAUSE * (1 << min(self.tries - 1, 10)), _LONGEST_PAUSE)


@dataclass(frozen=True)
class LastCheck:
    """How a device last looked for a new version.

    Args:
        at: when, in UTC.
        channel: that the device follows, as far as it knows.
        trouble: what kept it from following, if anything did.
        misfit: the trouble with a version that would not do, as long as it is the one to follow.
        left: the version that the owner has left for another one: it is not taken again until a
            newer one is published.
    """

    at: datetime
    channel: ChannelName | None
    trouble: Trouble | None = None
    misfit: Trouble | None = None
    left: int | None = None

    def version_left(self, current: Version) -> int | None:
        """Return the version that the owner has left, if the one in use is not a newer one."""
        if self.left is None or (current.number or 0) >= self.left:
            return None
        return self.left


def read_server(vault: Vault) -> MainServer | None:
    """Return the main server that a device follows; None if it follows none.

    Raises:
        VaultError: the note was altered.
    """
    try:
        note = vault.read_note("server")
    except VaultError as error:
        raise VaultError(
            f"{error} Say anew which main server the device follows: "
            "`fedspk device follow --server URL --root FILE`."
        ) from error
    if note is None:
        return None
    found = json.loads(note)
    ca = Path(found["ca"]) if found["ca"] else None
    return MainServer(found["address"], found["root"].encode(), ca)


def write_server(vault: Vault, server: MainServer) -> None:
    """Let a device follow this main server."""
    content = {
        "address": server.address,
        "root": server.root.decode(),
        "ca": str(server.ca.absolute()) if server.ca else None,
    }
    vault.write_note("server", json.dumps(content).encode())


def registered_with(vault: Vault) -> str | None:
    """Return the address of the main server that knows the device; None if none does.

    A registration counts as long as the device follows the root that it followed then. One that
    does not open counts no more: the device can be registered anew.

    Raises:
        VaultError: the note of the server was altered.
    """
    try:
        note = vault.read_note("registration")
    except FedspkError as error:
        _LOG.warning("%s The device counts as not registered.", error)
        return None
    found = json.loads(note) if note else None
    return found["address"] if found and found["root"] == _followed_root(vault) else None


def write_registration(vault: Vault, address: str) -> None:
    """Note that the main server at an address knows the device."""
    content = {"address": address, "root": _followed_root(vault)}
    vault.write_note("registration", json.dumps(content).encode())


def _followed_root(vault: Vault) -> str | None:
    server = read_server(vault)
    return hashlib.sha256(server.root).hexdigest() if server else None


def read_check(vault: Vault) -> LastCheck | None:
    """Return how the last check went; None before the first, or if the note does not open.

    The next check writes it anew: a device that looked no more could never be cured.
    """
    try:
        note = vault.read_note("check")
    except FedspkError as error:
        _LOG.warning(
            "%s How the last look for a new version went is forgotten, and which version the owner "
            "has left, if one was.",
            error,
        )
        return None
    if note is None:
        return None
    found = json.loads(note)
    return LastCheck(
        datetime.fromisoformat(found["at"]),
        found["channel"],
        _trouble(found["trouble"]),
        _trouble(found["misfit"]),
        found.get("left"),
    )


def write_check(vault: Vault, check: LastCheck) -> None:
    """Note how a check went."""
    vault.write_note("check", json.dumps(asdict(check), default=datetime.isoformat).encode())


def leave_version(vault: Vault) -> None:
    """Note that the owner is about to leave the version in use, if a main server published it.

    Raises:
        VaultError: a box was altered.
    """
    with vault.writing():
        number = read_versions(vault).current.number
        if number is None or read_server(vault) is None:
            return
        check = read_check(vault) or LastCheck(datetime.now(UTC), None)
        write_check(vault, replace(check, left=max(number, check.left or 0)))


def _trouble(content: dict[str, Any] | None) -> Trouble | None:
    if content is None:
        return None
    return Trouble(**{**content, "since": datetime.fromisoformat(content["since"])})
