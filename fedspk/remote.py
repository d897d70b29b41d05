"""The versions that a main server publishes, verified: what devices and aggregators fetch.

Metadata are those of The Update Framework (https://theupdateframework.github.io/specification):

1. The first root comes from the caller; every later one is signed by the one before.
2. Timestamp, snapshot and release are signed, never older than those seen before, and not expired.
3. A target is taken only with the length and SHA-256 that the release says, to which two parties
   signed; of a model, manifest and file must agree as well (`fedspk.release.check_model_file`).
4. Nothing is read beyond its signed length, and a broken download goes on where it stopped.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets
from tuf.ngclient import Updater
from urllib3.response import BaseHTTPResponse

from fedspk.connection import Connection, VersionsUnreachable
from fedspk.errors import FedspkError
from fedspk.files import DiskFullError, atomic_write, explained, sync, write_bytes
from fedspk.proposals import LIFETIME, RELEASE, versions
from fedspk.release import (
    MOST_JSON,
    Channel,
    ChannelName,
    Kind,
    Manifest,
    channel_path,
    check_client,
    check_model_file,
    followed,
    manifest_path,
    model_path,
)

__all__ = [
    "GeneratorNotPublishedError",
    "OnBytes",
    "Reason",
    "RemoteVersions",
    "VersionsRefused",
    "VersionsUnreachable",
]

Reason = Literal["rollback", "expired", "clock", "signature", "damaged", "incompatible"]
"""Why something was refused: it is older than what was seen, no longer valid, not to be judged with
this clock, lacks signatures, is not what was signed, or is nothing this fedspk can use."""

OnBytes = Callable[[int, int], None]
"""Called with the bytes that have come, and all that are to come."""

T = TypeVar("T")

_CLOCK_MARGIN = timedelta(minutes=5)
_ROOT = "first-root.json"
_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+)")


class VersionsRefused(FedspkError):  # noqa: N818, an answer rather than a fault
    """What the server offers is not to be trusted, or cannot be used, for a `reason`."""

    def __init__(self, sentence: str, reason: Reason) -> None:
        super().__init__(sentence)
        self.reason: Reason = reason


class GeneratorNotPublishedError(FedspkError):
    """A run names an impostor generator that the main server does not publish."""


class RemoteVersions:
    """Versions of a main server, verified; one process at a time uses `folder`.

    Args:
        address: the server's base URL, https://HOST:PORT (or http).
        folder: trusted metadata and broken downloads are kept here.
        root: the content of root.json; needed the first time, kept for later.
        ca: certificates to trust in place of the system's, in PEM.

    Raises:
        FedspkError: the address is none, a file cannot be read, or there is no root yet.
        VersionsUnreachable (all methods): try again later.
        VersionsRefused (all methods): the server shows what is not to be trusted or used.
        FedspkError (all methods): a file cannot be written.
    """

    def __init__(
        self, address: str, folder: Path, root: bytes | None = None, ca: Path | None = None
    ) -> None:
        self.folder = Path(folder)
        self._connection = Connection(address, ca)
        self.address = self._connection.address
        self._root = self._trusted_root(root)
        self._verified: Updater | None = None
        self._release: Metadata[Targets] | None = None

    def refresh(self) -> None:
        """Take the server's present state, if it is to be trusted."""
        updater = self._updater(self._root)
        release = None
        with self._faults():
            updater.refresh()
            snapshot = Metadata[Snapshot].from_file(str(self.folder / "snapshot.json"))
            if f"{RELEASE}.json" in snapshot.signed.meta:
                updater.get_targetinfo(channel_path("stable"))  # loads the release, verified
                release = Metadata[Targets].from_file(str(self.folder / f"{RELEASE}.json"))
        if release and release.signed.expires > _now() + LIFETIME + timedelta(days=1):
            # No release lives so long, so it was signed in this clock's future.
            raise VersionsRefused(
                f"{self.address}: its release was signed later than it is now by this machine's "
                f"clock ({_now():%Y-%m-%d %H:%M} UTC); set the clock.",
                "clock",
            )
        self._verified, self._release = updater, release

    def release(self) -> Metadata[Targets] | None:
        """Return the present release with its signatures; None before the first one."""
        self._present()
        return self._release

    def channel(self, name: ChannelName) -> Channel | None:
        """Return a channel; None when it was never set."""
        path = channel_path(name)
        target = self._target(path)
        if target is None:
            return None
        with self._faults():
            cached = self.folder / f"channel-{name}.json"
            if self._present().find_cached_target(target, str(cached)) is None:
                write_bytes(cached, self._small(target))
            content = cached.read_bytes()
        return _readable(lambda: Channel.from_json(content, path))

    def channel_of(self, device: str) -> Channel | None:
        """Return the channel that a device follows (`fedspk.release.followed`)."""
        return followed(device, self.channel("stable"), self.channel("canary"))

    def manifest(self, kind: Kind, version: int) -> Manifest:
        """Return the manifest of a version."""
        path = manifest_path(kind, version)
        with self._faults():
            content = self._small(self._listed(path))
        manifest = _readable(lambda: Manifest.from_json(content, path))
        if (manifest.kind, manifest.version) != (kind, version):
            raise VersionsRefused(f"{self.address}: {path} belongs to another version.", "damaged")
        return manifest

    def generators(self) -> list[int]:
        """Return the versions of the impostor generator, rising."""
        release = self.release()
        return versions(release.signed if release else None, "gan")

    def generator_of(self, sha256: str) -> int:
        """Return the version of the impostor generator whose file has this SHA-256.

        Raises:
            GeneratorNotPublishedError: none has.
        """
        found = self.generators()
        for version in reversed(found):
            if self._listed(model_path("gan", version)).hashes.get("sha256") == sha256:
                return version
        published = f"publishes {len(found)} impostor generators" if found else "publishes none"
        raise GeneratorNotPublishedError(
            f"{self.address}: {published}, and not {sha256[:16]}... that the run names; let the "
            "operator publish it (`fedspk server publish DIR --model generator.safetensors`)."
        )

    def fetch(
        self, kind: Kind, version: int, path: Path, *, on_bytes: OnBytes | None = None
    ) -> Manifest:
        """Download a model to `path`, which is whole and right or untouched.

        A download that breaks off goes on with the next call, even of another process.
        """
        manifest = self.manifest(kind, version)
        name = f"{self.address}: {model_path(kind, version)}"
        _readable(lambda: check_client(manifest, name))
        target = self._listed(model_path(kind, version))
        download = _Download(self.folder / "downloads", target)
        with self._faults():
            download.run(self._connection, self._url(target), on_bytes or (lambda *_: None))
            try:
                _readable(lambda: check_model_file(download.path, manifest))
            except VersionsRefused:
                download.discard()
                raise
            download.move(Path(path))
        return manifest

    def _trusted_root(self, given: bytes | None) -> bytes:
        """Return the root that trust starts from: the given one, else the one kept before."""
        stored = self.folder / _ROOT
        if given is None:
            if not stored.exists():
                raise FedspkError(
                    f"{self.folder}: no root is trusted yet; give the server's root.json."
                )
            return stored.read_bytes()
        if not stored.exists() or stored.read_bytes() != given:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._updater(given)
            except VersionsRefused as error:
                raise FedspkError(
                    "the root given is not root metadata; use the root.json that the main server's "
                    "operator hands out."
                ) from error
            write_bytes(stored, given)
        return given

    def _updater(self, root: bytes) -> Updater:
        with self._faults():
            return Updater(
                str(self.folder),
                f"{self.address}/metadata/",
                fetcher=self._connection,
                bootstrap=root,
            )

    def _present(self) -> Updater:
        if self._verified is None:
            self.refresh()
        assert self._verified is not None
        return self._verified

    def _target(self, path: str) -> TargetFile | None:
        self._present()
        return self._release.signed.targets.get(path) if self._release else None

    def _listed(self, path: str) -> TargetFile:
        target = self._target(path)
        if target is None:
            raise VersionsRefused(f"{self.address}: has no {path} in its release.", "damaged")
        return target

    def _small(self, target: TargetFile) -> bytes:
        if target.length > MOST_JSON:
            raise VersionsRefused(f"{target.path}: is longer than {MOST_JSON} bytes.", "damaged")
        content = self._connection.download_bytes(self._url(target), target.length)
        target.verify_length_and_hashes(content)
        return content

    def _url(self, target: TargetFile) -> str:
        return f"{self.address}/targets/{target.get_prefixed_paths()[0]}"

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Put in words what goes wrong in the block."""
        try:
            yield
        except DownloadHTTPError as error:
            raise VersionsUnreachable(
                f"{error}: the main server is not in order, or another server answers there."
            ) from error
        except ExpiredMetadataError as error:
            self._refuse_expired(error)
        except BadVersionNumberError as error:
            self._refuse(f"shows an older state than it did before ({error})", "rollback", error)
        except UnsignedMetadataError as error:
            self._refuse(
                f"its metadata lack signatures of those whom the trusted root names ({error}); if "
                "the root.json that was given is another server's, use this one's",
                "signature",
                error,
            )
        except (RepositoryError, ValueError) as error:
            self._refuse(f"what it sends is not what was signed ({error})", "damaged", error)
        except OSError as error:
            raise explained(error, self.folder) from error

    def _refuse_expired(self, error: Exception) -> NoReturn:
        off = self._connection.clock_error
        if off is not None and abs(off) > _CLOCK_MARGIN:
            way = "ahead of" if off > timedelta() else "behind"
            self._refuse(
                f"its metadata are no longer valid ({error}); but this machine's clock is "
                f"{abs(off) // timedelta(minutes=1)} minutes {way} the server's: set it",
                "clock",
                error,
            )
        self._refuse(
            f"its metadata are no longer valid ({error}); somebody may be showing an old state, "
            "or nobody has renewed them",
            "expired",
            error,
        )

    def _refuse(self, fault: str, reason: Reason, error: Exception) -> NoReturn:
        raise VersionsRefused(f"{self.address}: {fault}.", reason) from error


class _Download:
    """A target on its way to this machine: what has come stays, and the rest is asked for later.

    Raises (all methods):
        OSError: a file cannot be written.
    """

    def __init__(self, folder: Path, target: TargetFile) -> None:
        self._digest = target.hashes.get("sha256", "")
        self._length = target.length
        self.path = folder / f"{self._digest}.part"
        self._tag = folder / f"{self._digest}.etag"

    def run(self, connection: Connection, url: str, on_bytes: OnBytes) -> None:
        """Fetch what is missing; from the start if the beginning turns out to be another's."""
        self._make_room()
        if self.path.exists() and self._is_complete(connection, url, on_bytes):
            return
        self.discard()
        if not self._is_complete(connection, url, on_bytes):
            self.discard()
            raise VersionsRefused(f"{url}: is not the file that was signed.", "damaged")

    def move(self, path: Path) -> None:
        """Make the download the file `path`, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        sync(self.path)
        try:
            self.path.replace(path)
            sync(path.parent)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with self.path.open("rb") as source, atomic_write(path) as file:
                shutil.copyfileobj(source, file)
        self.discard()

    def discard(self) -> None:
        """Forget what has come."""
        self.path.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Delete the broken downloads of other files, and see that this one will fit."""
        folder = self.path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.stem != self._digest:
                path.unlink()
        missing = self._length - (self.path.stat().st_size if self.path.exists() else 0)
        if missing > shutil.disk_usage(folder).free:
            raise DiskFullError(
                f"{folder}: {missing} bytes are to come and there is no room for them."
            )

    def _is_complete(self, connection: Connection, url: str, on_bytes: OnBytes) -> bool:
        """Fetch the rest and say whether the whole is what was signed."""
        with self.path.open("a+b") as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            got = file.tell()
            if got < self._length:
                with connection.get(url, self._range(got)) as response:
                    if not self._continues(response, got, url):
                        file.truncate(0)
                        digest, got = hashlib.sha256(), 0
                    self._keep_tag(response)
                    for chunk in connection.chunks(response):
                        got += len(chunk)
                        if got > self._length:
                            break
                        digest.update(chunk)
                        file.write(chunk)
                        on_bytes(got, self._length)
        if got < self._length:
            raise VersionsUnreachable(f"{url}: broke off after {got} bytes; try again later.")
        return got == self._length and digest.hexdigest() == self._digest

    def _range(self, got: int) -> dict[str, str]:
        if not got:
            return {}
        # The address names the content's hash, so without a tag the rest is most likely right too.
        known = {"If-Range": self._tag.read_text()} if self._tag.exists() else {}
        return {"Range": f"bytes={got}-", **known}

    def _continues(self, response: BaseHTTPResponse, got: int, url: str) -> bool:
        """Say whether the body is the rest, rather than the whole; refuse anything else."""
        if response.status == 206:
            place = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if place and (int(place[1]), int(place[2])) == (got, self._length):
                return True
        elif response.status == 200:
            if int(response.headers.get("Content-Length", self._length)) == self._length:
                return False
        elif response.status != 416:
            raise DownloadHTTPError(f"{url}: status {response.status}", response.status)
        self.discard()
        raise VersionsRefused(f"{url}: has another length than was signed.", "damaged")

    def _keep_tag(self, response: BaseHTTPResponse) -> None:
        tag = response.headers.get("ETag", "")
        if tag.startswith('"'):  # a weak one does not vouch for every byte
            write_bytes(self._tag, tag.encode())


def _readable(read: Callable[[], T]) -> T:
    """Return what `read` returns; what it cannot make out is refused."""
    try:
        return read()
    except VersionsRefused:
        raise
    except FedspkError as error:
        raise VersionsRefused(str(error), "incompatible") from error


def _now() -> datetime:
    return datetime.now(UTC)
