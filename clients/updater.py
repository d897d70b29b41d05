"""A device follows its main server: what one look for a new version does.

1. The server's metadata are verified, and the device's channel says which version it is to use.
2. If the device has another, that version is downloaded, checked, compiled, and all users are
   re-enrolled with it; then it takes over in one step. A version whose weights the device still has
   takes over at once.
3. A version that the owner has left is not taken again by itself; a newer one is.
4. Whatever goes wrong, the version in use goes on serving. A version that would not do is left
   alone for a while, unless fedspk itself was updated since.

One process at a time looks; verification and enrolment never wait for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from clients.compiled import CompiledModel, compile_model
from clients.followed import (
    LastCheck,
    MainServer,
    Trouble,
    read_check,
    read_server,
    registered_with,
    write_check,
    write_registration,
    write_server,
)
from clients.recogniser import Recogniser, start_device
from clients.vault import Vault, VaultError
from clients.vault_key import AskPassphrase, Protection
from clients.versions import Version, load_model, read_versions, thresholds_of, write_versions
from fedspk import __version__
from fedspk.api import DeviceState, Failure, Report
from fedspk.errors import FedspkError
from fedspk.files import PARTIAL, DiskFullError, explained
from fedspk.release import Channel
from fedspk.remote import OnBytes, RemoteVersions, VersionsRefused, VersionsUnreachable

_LASTING: tuple[Failure, ...] = ("incompatible", "refused")
"""Failures of a version that trying it again at once would not cure."""

_TRIES = 3
"""After so many failures of another kind, trying a version again will not do either."""


@dataclass(frozen=True)
class Outcome:
    """What a device runs after a check.

    Args:
        version: in use now.
        channel: that the device follows; None where the server has named no version yet, or could
            not be asked.
        changed: whether another version took over.
        re_enrolled: how many users were re-enrolled for it.
        trouble: what kept the device from following, if anything did.
    """

    version: Version
    channel: Channel | None
    changed: bool = False
    re_enrolled: int = 0
    trouble: Trouble | None = None

    @property
    def state(self) -> DeviceState:
        """What the device tells its main server."""
        return "failed" if self.trouble else "serving"

    def report(self) -> Report:
        """Return what the device tells its main server."""
        return Report(
            version=self.version.number,
            content_hash=self.version.model_hash,
            state=self.state,
            failure=self.trouble.failure if self.trouble else None,
            attempted=self.trouble.version if self.trouble else None,
            client=__version__,
        )


class UpdateRunningError(FedspkError):
    """Another process is looking for a new version."""


class DownloadDueError(Exception):
    """A look that is to be quick has come to a version that must be downloaded."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version} must be downloaded")
        self.version = version


class Updater:
    """Lets a device follow its main server.

    Args:
        vault: the device's.
        recogniser: what serves in this process, if anything does; it changes to the new version.
        on_bytes: told how much of a download has come.
        now: the time in UTC.
    """

    def __init__(
        self,
        vault: Vault,
        recogniser: Recogniser | None = None,
        *,
        on_bytes: OnBytes | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._vault = vault
        self._recogniser = recogniser
        self._on_bytes = on_bytes
        self._now = now

    def check(self, *, again: bool = False) -> Outcome:
        """Look for a new version once, and take it into use.

        Args:
            again: take a version even if it would not do a short while ago, or was left; fetch the
                one in use again if its file was damaged.

        Raises:
            FedspkError: the device follows no main server, or the outcome cannot be noted.
            UpdateRunningError: another process is looking.
            VaultError: a box was altered.
        """
        return self._look(again, may_download=True)

    def look(self) -> Outcome:
        """Do what `check` does, unless that means to download a version.

        So it never takes long nor much memory.

        Raises:
            DownloadDueError: that is so.
            FedspkError: as of `check`.
        """
        return self._look(again=False, may_download=False)

    def give_up(self, version: int, error: FedspkError) -> Outcome:
        """Note that another process was to take a version into use and ended before it had.

        Raises:
            FedspkError: as of `check`.
        """
        vault = self._vault
        with _alone(vault.home):
            last, current = read_check(vault), read_versions(vault).current
            trouble = None if current.number == version else self._trouble(error, version, last)
            outcome = Outcome(current, None, trouble=trouble)
            self._note(outcome, last)
        return outcome

    def _look(self, again: bool, may_download: bool) -> Outcome:
        vault = self._vault
        with _alone(vault.home):
            server = read_server(vault)
            if server is None:
                raise FedspkError(
                    "this device follows no main server; make one that does with "
                    "`fedspk device init --server`."
                )
            for leftover in (vault.home / "remote").rglob(f".*{PARTIAL}"):
                leftover.unlink()
            last = read_check(vault)
            outcome = self._take(server, last, again, may_download)
            self._note(outcome, last)
        return outcome

    def _take(
        self, server: MainServer, last: LastCheck | None, again: bool, may_download: bool
    ) -> Outcome:
        current, channel = read_versions(self._vault).current, None
        misfit = last.misfit if last else None
        try:
            remote = _remote(self._vault, server)
            remote.refresh()
            channel = remote.channel_of(self._vault.device)
            if channel is None:
                return Outcome(current, None)
            is_to_mend = again and not _loads(self._vault, current)
            if channel.version == current.number and not is_to_mend:
                return Outcome(current, channel)
            if last and last.left and not again and channel.version <= last.left:
                return Outcome(current, channel)
            if misfit and not again and self._is_left_alone(misfit, channel.version):
                return Outcome(current, channel, trouble=misfit)
            count = self._change(remote, channel.version, may_download)
            return Outcome(read_versions(self._vault).current, channel, True, count)
        except (FedspkError, OSError) as error:
            wanted = channel.version if channel else None
            current = read_versions(self._vault).current
            return Outcome(current, channel, trouble=self._trouble(error, wanted, last))

    def _change(self, remote: RemoteVersions, number: int, may_download: bool) -> int:
        """Use another version from now on and return how many users were re-enrolled.

        Raises:
            DownloadDueError: that version is not at hand.
        """
        vault = self._vault
        manifest = remote.manifest("model", number)
        thresholds = thresholds_of(manifest)
        recogniser = self._recogniser or Recogniser(vault)
        count = recogniser.use_kept(manifest.content_hash, number, thresholds)
        if count is not None:
            return count
        if not may_download:
            raise DownloadDueError(number)
        compiled = _fetch(vault, remote, number, self._on_bytes)
        return recogniser.swap(recogniser.prepare(compiled, thresholds, number))

    def _is_left_alone(self, trouble: Trouble, number: int) -> bool:
        return (
            trouble.version == number
            and trouble.client == __version__
            and (trouble.failure in _LASTING or trouble.tries >= _TRIES)
            and trouble.since <= self._now() < trouble.since + trouble.pause()
        )

    def _trouble(
        self, error: FedspkError | OSError, wanted: int | None, last: LastCheck | None
    ) -> Trouble:
        if isinstance(error, OSError):
            error = explained(error, self._vault.home)
        failure = _failure(error)
        earlier = [last.trouble, last.misfit] if last else []
        tries = [each.tries for each in earlier if each and each.is_about(failure, wanted)]
        count = max(tries, default=0) + 1
        return Trouble(failure, str(error), wanted, __version__, count, self._now())

    def _note(self, outcome: Outcome, last: LastCheck | None) -> None:
        with self._vault.writing():
            present = read_check(self._vault)  # the owner may have left a version meanwhile
            noted = self._noted(outcome, last)
            write_check(self._vault, replace(noted, left=present.left if present else None))

    def _noted(self, outcome: Outcome, last: LastCheck | None) -> LastCheck:
        before = last or LastCheck(self._now(), None)
        channel = outcome.channel.name if outcome.channel else before.channel
        trouble, misfit = outcome.trouble, None
        if trouble:
            is_lasting = trouble.version is not None and trouble.failure in (*_LASTING, "other")
            misfit = trouble if is_lasting else before.misfit
        return LastCheck(self._now(), channel, trouble, misfit)


def create_following_device(
    home: Path,
    server: MainServer,
    protection: Protection,
    ask: AskPassphrase,
    on_bytes: OnBytes | None = None,
) -> Vault:
    """Make a folder a device's that follows a main server; return its vault.

    An interrupted call can be repeated.

    Raises:
        FedspkError: the folder will not do (see `clients.recogniser.create_device`), the server has
            published no version for devices, or the version will not do.
        VersionsUnreachable: the server cannot be reached.
        VersionsRefused: what it shows is not to be trusted.
    """
    vault = Vault.prepare(home)
    with _alone(vault.home):
        remote = _remote(vault, server)
        remote.refresh()
        channel = remote.channel_of(vault.device)
        if channel is None:
            raise FedspkError(
                f"{server.address}: has published no version for devices yet; run init again when "
                "it has."
            )
        thresholds = thresholds_of(remote.manifest("model", channel.version))
        compiled = _fetch(vault, remote, channel.version, on_bytes)
        with vault.writing():
            write_server(vault, server)
            write_check(vault, LastCheck(datetime.now(UTC), channel.name))
        start_device(vault, compiled, thresholds, protection, ask, channel.version)
    return vault


def follow_server(vault: Vault, server: MainServer) -> None:
    """Let a device follow a main server from now on, at an address where it shows what it signed.

    Under the root that the device trusts already, it is the same server at another address: what
    the device has seen of it still counts. Under another root, it is another server: version
    numbers mean something else there, and the device has to be registered with it. A note of the
    server before that does not open is replaced.

    Raises:
        UpdateRunningError: another process is looking for a new version.
        VersionsUnreachable: the server cannot be reached.
        VersionsRefused: what it shows is not to be trusted.
        FedspkError: the root or the certificates cannot be used.
    """
    with _alone(vault.home):
        try:
            before = read_server(vault)
        except VaultError:  # what is given now takes its place
            before = None
        if before is not None and before.root == server.root:
            _remote(vault, server).refresh()
            with vault.writing():
                if registered_with(vault) is not None:
                    write_registration(vault, server.address)
                write_server(vault, server)
            return
        with TemporaryDirectory() as folder:
            RemoteVersions(server.address, Path(folder), server.root, server.ca).refresh()
        with vault.writing():
            # the last step is the one that counts: until then it is the server before, and the
            # registration with it counts
            versions = read_versions(vault)
            write_versions(vault, versions.unnumbered())
            write_check(vault, LastCheck(datetime.now(UTC), None))
            write_server(vault, server)
        shutil.rmtree(vault.home / "remote", ignore_errors=True)


def _remote(vault: Vault, server: MainServer) -> RemoteVersions:
    return RemoteVersions(server.address, vault.home / "remote", server.root, server.ca)


def _fetch(
    vault: Vault, remote: RemoteVersions, number: int, on_bytes: OnBytes | None
) -> CompiledModel:
    """Download a version and compile it."""
    path = vault.home / "remote" / "model.safetensors"
    try:
        remote.fetch("model", number, path, on_bytes=on_bytes)
        return _compiled(path, f"{remote.address}: version {number}")
    finally:
        path.unlink(missing_ok=True)


def _loads(vault: Vault, version: Version) -> bool:
    try:
        load_model(vault.home, version)
    except FedspkError:
        return False
    return True


def _compiled(path: Path, name: str) -> CompiledModel:
    try:
        return compile_model(path)
    except OSError:
        raise
    except Exception as error:  # PyTorch's exporter has many kinds of its own
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise VersionsRefused(f"{name} cannot be used here ({reason}).", "incompatible") from error


def _failure(error: FedspkError) -> Failure:
    if isinstance(error, VersionsUnreachable):
        return "unreachable"
    if isinstance(error, VersionsRefused):
        if error.reason == "clock":
            return "clock"
        return "incompatible" if error.reason == "incompatible" else "refused"
    return "disk full" if isinstance(error, DiskFullError) else "other"


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Let this process alone look for versions."""
    path = home / "update.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise explained(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UpdateRunningError(
            f"{home}: another process is looking for a new version; try again later."
        ) from error
    finally:
        os.close(descriptor)
