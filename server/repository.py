"""The repository's folder: TUF metadata and targets, read whole and changed in one instant.

    DIR/public/metadata/   <version>.<role>.json and timestamp.json     } what devices fetch:
    DIR/public/targets/    models/<n>/<hash>.model.safetensors, ...     } static files
    DIR/keys/              private keys at hand, mode 0600
    DIR/audit.jsonl        who did what, when and why
    DIR/lock               held by whoever changes the repository

Target files may lie in another store instead (`server.artefacts`, `server.settings`).

Rules that make every change safe at any instant, a power cut included:

1. A file once published is never written again; names carry a version or a hash. Only
   `timestamp.json` is replaced, by rename.
2. A change writes targets, then targets and release metadata, then the snapshot, and at last the
   timestamp: until its rename devices see the old state, from then on the new one.
3. What a killed change left behind is named by no timestamp; the next change deletes it first.
4. A new root takes effect by itself, so it must accept the metadata that lies there: a key is
   replaced by way of a root that lists the old one and the new one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from fedspk import proposals
from fedspk.errors import FedspkError
from fedspk.files import PARTIAL, explained, write_bytes
from fedspk.proposals import RELEASE, Content
from fedspk.release import (
    MOST_JSON,
    Channel,
    ChannelName,
    Kind,
    Manifest,
    channel_path,
    manifest_path,
)
from fedspk.signing import OWNER
from server.artefacts import open_artefacts
from server.audit import AuditLog
from server.faults import ConflictError, LacksKeyError
from server.settings import Settings

LIFETIMES: Mapping[str, timedelta] = {
    Root.type: timedelta(days=365),
    Targets.type: timedelta(days=365),
    RELEASE: proposals.LIFETIME,
    Snapshot.type: timedelta(days=14),
    Timestamp.type: timedelta(days=3),
}
"""How long metadata count from their signing: a device that is shown no newer ones refuses."""

KEPT_METADATA = 20
"""So many old versions of a role's metadata stay, for devices in the middle of an update."""

Signers = Mapping[str, CryptoSigner]
"""The private keys at hand, by key id."""

T = TypeVar("T", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True)
class State:
    """All metadata that devices see at one instant; `release` is None before the first one."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    release: Metadata[Targets] | None
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    @property
    def released(self) -> Targets | None:
        """What the release lists."""
        return self.release.signed if self.release else None

    def roles(self) -> dict[str, Metadata[Any]]:
        """Return the metadata by role."""
        found: dict[str, Metadata[Any]] = {Root.type: self.root, Targets.type: self.targets}
        if self.release:
            found[RELEASE] = self.release
        return {**found, Snapshot.type: self.snapshot, Timestamp.type: self.timestamp}

    def delegator(self, role: str) -> Root | Targets:
        """Return what says whose signatures a role needs."""
        return self.targets.signed if role == RELEASE else self.root.signed


class Repository:
    """A repository of versions in a folder.

    Raises (all methods):
        FedspkError: the folder is not a repository, is damaged, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.metadata = self.folder / "public" / "metadata"
        self.keys = self.folder / "keys"
        self.audit = AuditLog(self.folder / "audit.jsonl")
        if not (self.metadata / "1.root.json").is_file():
            raise FedspkError(
                f"{folder}: is not a repository of versions; make one with `fedspk server init`."
            )
        local = self.folder / "public" / "targets"
        self.artefacts = open_artefacts(Settings.read(self.folder).artefacts, local)
        self._fetched = self.folder / "fetched"

    def read(self) -> State:
        """Return the present state; every signature in it is verified."""
        root = self._root()
        timestamp = self._load(self.metadata / "timestamp.json", Timestamp)
        snapshot = self._load(
            self._path(Snapshot.type, timestamp.signed.snapshot_meta.version), Snapshot
        )
        listed = snapshot.signed.meta
        targets = self._load(self._path(Targets.type, listed["targets.json"].version), Targets)
        release = None
        if f"{RELEASE}.json" in listed:
            release = self._load(self._path(RELEASE, listed[f"{RELEASE}.json"].version), Targets)
        state = State(root, targets, release, snapshot, timestamp)
        for role, metadata in state.roles().items():
            self.check_signatures(state, role, metadata)
        return state

    def check_signatures(self, state: State, role: str, metadata: Metadata[Any]) -> None:
        """Accept metadata that enough keys of their role have signed."""
        try:
            state.delegator(role).verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except (RepositoryError, ValueError) as error:
            raise FedspkError(f"{self.folder}: {role} metadata are not valid ({error}).") from error

    @contextmanager
    def changing(self) -> Iterator[State]:
        """Hold the repository alone in the block; what a killed change left is deleted before."""
        with self._lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(
                    f"{self.folder}: is being changed by another process; try again later."
                ) from error
            state = self.read()
            self._tidy(state)
            try:
                yield state
            finally:
                shutil.rmtree(self._fetched, ignore_errors=True)

    def _lock_file(self) -> IO[bytes]:
        """Open the lock, the owner's alone: whoever can read a file can hold its lock."""
        path = self.folder / "lock"
        try:
            lock = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")
            path.chmod(0o600)
        except OSError as error:
            raise explained(error, path) from error
        return lock

    def commit(
        self,
        state: State,
        signers: Signers,
        action: str,
        *,
        who: str | None = None,
        details: Mapping[str, Any] | None = None,
        files: Mapping[str, Content] | None = None,
        release: Metadata[Targets] | None = None,
        targets: Metadata[Targets] | None = None,
        snapshot: bool = True,
    ) -> State:
        """Publish new targets, and the metadata that list them, and return the new state.

        Args:
            state: what `changing` gave, or the last commit.
            signers: keys at hand; those of snapshot and timestamp must be among them.
            action, who, details: for the audit log (`AuditLog.append`).
            files: new targets, listed in `release`.
            release: signed release metadata.
            targets: signed targets metadata.
            snapshot: whether to sign a snapshot; without, only the timestamp is signed again.

        Raises:
            FedspkError: a key is missing, or a signature; nothing has been published then.
        """
        state = replace(state, release=release or state.release, targets=targets or state.targets)
        new = {Targets.type: targets, RELEASE: release}
        written: dict[str, Metadata[Any]] = {
            role: each for role, each in new.items() if each is not None
        }
        for role, metadata in state.roles().items():
            if role in (Targets.type, RELEASE):
                self.check_signatures(state, role, metadata)
        if snapshot:
            state = replace(state, snapshot=following(state.snapshot, Snapshot.type))
            for role, metadata in written.items():
                state.snapshot.signed.meta[f"{role}.json"] = listing(metadata)
            self.sign(state, Snapshot.type, state.snapshot, signers)
            written[Snapshot.type] = state.snapshot
        state = replace(state, timestamp=following(state.timestamp, Timestamp.type))
        state.timestamp.signed.snapshot_meta = listing(state.snapshot)
        self.sign(state, Timestamp.type, state.timestamp, signers)

        self.audit.append(action, state.timestamp.signed.version, who, **(details or {}))
        for path, content in (files or {}).items():
            assert state.release is not None
            self.artefacts.write(_stored(state.release.signed, path), content)
        for role, metadata in written.items():
            write_bytes(self._path(role, metadata.signed.version), metadata.to_bytes())
        write_bytes(self.metadata / "timestamp.json", state.timestamp.to_bytes())
        return state

    def commit_root(
        self, state: State, root: Metadata[Root], action: str, details: Mapping[str, Any]
    ) -> State:
        """Publish a root that `check_root` accepts."""
        self.check_root(state, root)
        self.audit.append(action, state.timestamp.signed.version, **details)
        write_bytes(self._path(Root.type, root.signed.version), root.to_bytes())
        return replace(state, root=root)

    def check_root(self, state: State, root: Metadata[Root]) -> None:
        """Accept the next root when enough keys have signed it: the present root's and its own."""
        checks = root.signed.get_root_verification_result(
            state.root.signed, root.signed_bytes, root.signatures
        )
        if not checks:
            owners = sorted(owner_of(key) for key in checks.unsigned.values())
            raise FedspkError(
                "the new root is not signed by enough root keys; "
                f"give more of them with --key: {', '.join(owners)}."
            )

    def sign(self, state: State, role: str, metadata: Metadata[Any], signers: Signers) -> None:
        """Sign metadata with every key at hand that their role lists.

        Raises:
            LacksKeyError: these are too few.
        """
        delegator = state.delegator(role)
        listed = delegator.get_delegated_role(role)
        for keyid in listed.keyids:
            if keyid in signers:
                metadata.sign(signers[keyid], append=True)
        missing = listed.threshold - len(metadata.signatures.keys() & set(listed.keyids))
        if missing > 0:
            absent = [keyid for keyid in listed.keyids if keyid not in metadata.signatures]
            owners = sorted(owner_of(delegator.get_key(keyid)) for keyid in absent)
            raise LacksKeyError(
                f"{role} metadata lack {missing} of {listed.threshold} signatures; "
                f"give a key with --key: {', '.join(owners)}."
            )

    def manifest(self, state: State, kind: Kind, version: int) -> Manifest:
        """Return the manifest of a published version."""
        path = manifest_path(kind, version)
        return Manifest.from_json(self._read_target(state, path), path)

    def channel(self, state: State, name: ChannelName) -> Channel | None:
        """Return a channel; None when it was never set."""
        path = channel_path(name)
        if state.release is None or path not in state.release.signed.targets:
            return None
        return Channel.from_json(self._read_target(state, path), path)

    def target(self, state: State, path: str) -> Path:
        """Return the file of a published target: maybe a copy, until the present change ends."""
        assert state.release is not None
        return self.artefacts.fetch(_stored(state.release.signed, path), self._fetched)

    def _read_target(self, state: State, path: str) -> bytes:
        if state.release is None or path not in state.release.signed.targets:
            raise FedspkError(f"{self.folder}: there is no {path} in it.")
        content = self.artefacts.read(_stored(state.release.signed, path), 0, MOST_JSON + 1)
        try:
            state.release.signed.targets[path].verify_length_and_hashes(content)
        except RepositoryError as error:
            raise FedspkError(f"{self.folder}: {path} is damaged ({error}).") from error
        return content

    def _root(self) -> Metadata[Root]:
        version = 1
        while self._path(Root.type, version + 1).exists():
            version += 1
        return self._load(self._path(Root.type, version), Root)

    def _path(self, role: str, version: int) -> Path:
        return self.metadata / f"{version}.{role}.json"

    def _load(self, path: Path, kind: type[T]) -> Metadata[T]:
        try:
            metadata = Metadata[T].from_bytes(path.read_bytes())
        except (OSError, RepositoryError, ValueError) as error:
            raise FedspkError(f"{path}: is missing or damaged ({error}).") from error
        if not isinstance(metadata.signed, kind):
            raise FedspkError(f"{path}: is not {kind.type} metadata.")
        return metadata

    def _tidy(self, state: State) -> None:
        """Delete what no timestamp names: leavings of killed changes, and old metadata."""
        shutil.rmtree(self._fetched, ignore_errors=True)
        for folder in (self.metadata, self.keys):
            for leftover in folder.glob(f".*{PARTIAL}"):
                leftover.unlink()
        kept: set[str] = set()
        for role, metadata in state.roles().items():
            last = metadata.signed.version
            for path in self.metadata.glob(f"*.{role}.json"):
                number = path.name.partition(".")[0]
                if not number.isdecimal():
                    continue  # somebody's copy
                version = int(number)
                if role != Root.type and not last - KEPT_METADATA < version <= last:
                    path.unlink()
                elif role == RELEASE:
                    release = self._load(path, Targets).signed
                    kept |= {_stored(release, name) for name in release.targets}
        if state.release is None:
            for path in self.metadata.glob(f"*.{RELEASE}.json"):
                path.unlink()
        self.artefacts.keep_only(kept)
        self.audit.settle(state.timestamp.signed.version)


def _stored(release: Targets, path: str) -> str:
    """Return the name of a target's file in the store."""
    return release.targets[path].get_prefixed_paths()[0]


def owner_of(key: Any) -> str:
    """Return whose key one is, as metadata say."""
    return str(key.unrecognized_fields.get(OWNER, key.keyid))


def now() -> datetime:
    """Return the time in UTC, in whole seconds, as metadata state it."""
    return datetime.now(UTC).replace(microsecond=0)


def following(metadata: Metadata[T], role: str) -> Metadata[T]:
    """Return an unsigned copy of a role's metadata, one version later, with a whole lifetime."""
    signed = deepcopy(metadata.signed)
    signed.version += 1
    signed.expires = now() + LIFETIMES[role]
    return Metadata(signed)


def listing(metadata: Metadata[Any]) -> MetaFile:
    """Return how snapshot or timestamp name metadata: version, length and hash."""
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])
