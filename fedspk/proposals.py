"""A release that one party proposes and the other signs.

What devices may use is listed in the metadata of the role "release", which counts only with the
signatures of two parties, the aggregator and the main server. A proposal is a folder:

- `release.json`: the next release metadata, with the signatures given so far,
- `base.json`: the release metadata that it follows (absent before the first release),
- `targets/`: the files that are new in it or have changed.

Rules that every party holds a proposal to before it signs:

1. The base carries the signer's own signature. Only the very first release has none.
2. The version of the metadata is the base's plus one; nothing is delegated further.
3. Nothing that was released is altered, except channels. A version may be withdrawn, with both its
   files, but never the newest of its kind, so that no number is used twice.
4. A new version has the next number, and both its files; model and manifest agree. One that goes
   back to an earlier version has its model file, to the byte.
5. A channel names a version of the speaker model that is in the release.
6. The files in the folder are those of the metadata, to the byte.
7. The release has not expired, and lives no longer than `LIFETIME`.

The main server, which knows all channels and manifests, also sees to it that only a run's
intermediate versions that no channel names are withdrawn, and that a version's parent is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import IO, Self

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets

from fedspk.errors import FedspkError
from fedspk.files import atomic_write, write_bytes
from fedspk.release import (
    Channel,
    ChannelName,
    Kind,
    Manifest,
    channel_at,
    check_model_file,
    manifest_path,
    model_path,
    version_at,
)

RELEASE = "release"
LIFETIME = timedelta(days=180)
"""A release is signed for so long; two parties must meet to sign it again."""

Content = bytes | Path
"""A target's bytes, or the file that holds them."""


@dataclass(frozen=True)
class Changes:
    """What a release changes: versions added and withdrawn (kind and number), and channels set."""

    versions: tuple[tuple[Kind, int], ...]
    channels: tuple[ChannelName, ...]
    withdrawn: tuple[tuple[Kind, int], ...] = ()


@dataclass(frozen=True)
class Proposal:
    """A release to be: metadata, the metadata before it, and its new files by target path."""

    release: Metadata[Targets]
    base: Metadata[Targets] | None
    files: Mapping[str, Content] = field(default_factory=dict)

    @classmethod
    def following(
        cls,
        base: Metadata[Targets] | None,
        files: Mapping[str, Content],
        now: datetime,
        withdrawn: Collection[tuple[Kind, int]] = (),
    ) -> Self:
        """Return an unsigned proposal that sets the targets `files` and keeps all others.

        Args:
            base: the present release, if there is one.
            files: new targets by path.
            now: when this is.
            withdrawn: versions to leave out from now on.
        """
        before = base.signed.targets if base else {}
        targets = {path: each for path, each in before.items() if version_at(path) not in withdrawn}
        for path, content in files.items():
            if isinstance(content, Path):
                targets[path] = TargetFile.from_file(path, str(content))
            else:
                targets[path] = TargetFile.from_data(path, content)
        version = base.signed.version + 1 if base else 1
        signed = Targets(version=version, expires=now + LIFETIME, targets=targets)
        return cls(Metadata(signed), base, dict(files))

    @cached_property
    def changes(self) -> Changes:
        """What the release adds, sets and withdraws.

        Raises:
            FedspkError: it breaks rule 2, 3, 4 or 5.
        """
        return _changes(self.base.signed if self.base else None, self.release.signed)

    def sign(self, signers: Iterable[Signer]) -> None:
        """Add signatures; `check` before you sign what others made."""
        for signer in signers:
            self.release.sign(signer, append=True)

    def check(self) -> None:
        """Accept a proposal that keeps rules 2 to 7.

        Raises:
            FedspkError: it breaks one of them.
        """
        changes = self.changes
        expires, now = self.release.signed.expires, datetime.now(UTC)
        if not now < expires <= now + LIFETIME + timedelta(days=1):
            raise FedspkError(
                f"the proposal is signed until {expires:%Y-%m-%d}, which is past; make it anew."
                if expires <= now
                else f"the proposal is signed until {expires:%Y-%m-%d}; "
                f"no release may live longer than {LIFETIME.days} days."
            )
        for path, content in self.files.items():
            _check_content(self.release.signed.targets[path], content)
        for kind, version in changes.versions:
            model = self.files[model_path(kind, version)]
            if not isinstance(model, Path):
                raise TypeError("models are files")
            manifest = self.manifest(kind, version)
            check_model_file(model, manifest)
            self._check_return(manifest)
        for name in changes.channels:
            self.channel(name)

    def check_base(self, keys: Collection[Key], *, is_first: bool = False) -> None:
        """Accept a base that the owner of `keys` signed with one of them (rule 1).

        Args:
            keys: of the signer.
            is_first: whether the signer knows that nothing has been released before; without a
                base any history could be written anew.

        Raises:
            FedspkError: the base is another's, or there is none, or is one against `is_first`.
        """
        if (self.base is None) != is_first:
            raise FedspkError(
                "the proposal follows no release; only the very first one does (--first)."
                if self.base is None
                else "the proposal follows a release: it is not the first (--first)."
            )
        if self.base and not any(_has_signed(key, self.base) for key in keys):
            raise FedspkError(
                "the release before the proposed one is not signed by this key; "
                "sign only what follows a release of yours."
            )

    def manifest(self, kind: Kind, version: int) -> Manifest:
        """Return the manifest of a version that the release adds.

        Raises:
            FedspkError: it is wrong, or another version's.
        """
        path = manifest_path(kind, version)
        manifest = Manifest.from_json(_bytes(self.files[path]), path)
        if (manifest.kind, manifest.version) != (kind, version):
            raise FedspkError(f"{path}: is of {manifest.kind} version {manifest.version}.")
        return manifest

    def _check_return(self, manifest: Manifest) -> None:
        to = manifest.rolled_back_to
        if to is None:
            return
        targets = self.release.signed.targets
        old = targets.get(model_path(manifest.kind, to))
        if old is None or old.hashes != targets[model_path(manifest.kind, manifest.version)].hashes:
            raise FedspkError(
                f"{manifest_path(manifest.kind, manifest.version)}: says that it goes back to "
                f"version {to}, but has not the model file of that."
            )

    def channel(self, name: ChannelName) -> Channel:
        """Return a channel that the release sets.

        Raises:
            FedspkError: it is wrong, or names a version that is not in the release.
        """
        path = f"channels/{name}.json"
        channel = Channel.from_json(_bytes(self.files[path]), path)
        if channel.name != name:
            raise FedspkError(f"{path}: is of channel {channel.name}.")
        if model_path("model", channel.version) not in self.release.signed.targets:
            raise FedspkError(f"{path}: names version {channel.version}, which is not released.")
        return channel

    def write(self, folder: Path) -> None:
        """Write the proposal to a new folder; `release.json` comes last.

        Raises:
            FedspkError: the folder is there already, or cannot be written.
        """
        folder = Path(folder)
        if folder.exists():
            raise FedspkError(f"{folder}: is there already; name a new folder.")
        for path, content in self.files.items():
            with atomic_write(folder / "targets" / path) as out:
                copy_content(content, out, self.release.signed.targets[path].hashes["sha256"], path)
        if self.base:
            write_bytes(folder / "base.json", self.base.to_bytes())
        self.write_signatures(folder)

    def write_signatures(self, folder: Path) -> None:
        """Write the metadata alone into the folder of this proposal."""
        write_bytes(Path(folder) / "release.json", self.release.to_bytes())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a proposal; `check` it before it is believed.

        Raises:
            FedspkError: a file is missing or is not metadata.
        """
        folder = Path(folder)
        release = _read_metadata(folder / "release.json")
        base_file = folder / "base.json"
        base = _read_metadata(base_file) if base_file.exists() else None
        known = base.signed.targets if base else {}
        files: dict[str, Content] = {}
        for path, target in release.signed.targets.items():
            if known.get(path) != target and (version_at(path) or channel_at(path)):
                files[path] = folder / "targets" / path
        return cls(release, base, files)


def copy_content(content: Content, out: IO[bytes], sha256: str, name: str) -> None:
    """Copy a target's content as signed: a file may have changed since its hash was taken.

    Args:
        content: of the target.
        out: where to write it.
        sha256: of the content, in hex, as metadata state it.
        name: of the target, for the error.

    Raises:
        FedspkError: the content is another; what was written must not be used.
    """
    digest = hashlib.sha256()
    with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != sha256:
        raise FedspkError(f"{name}: its file has changed since it was read; publish it again.")


def latest_version(release: Targets | None, kind: Kind) -> int:
    """Return the highest number of a kind in a release; 0 when there is none."""
    return max(versions(release, kind), default=0)


def versions(release: Targets | None, kind: Kind) -> list[int]:
    """Return the numbers of a kind in a release, rising."""
    found = {version_at(path) for path in release.targets} if release else set()
    return sorted(each[1] for each in found if each and each[0] == kind)


def release_from(content: bytes, name: str) -> Metadata[Targets]:
    """Read release metadata, unverified; `name` says in an error where they were.

    Raises:
        FedspkError: they are none.
    """
    try:
        metadata = Metadata[Targets].from_bytes(content)
    except (RepositoryError, ValueError) as error:
        raise FedspkError(f"{name}: is not release metadata ({error}).") from error
    if not isinstance(metadata.signed, Targets):
        raise FedspkError(f"{name}: is not release metadata.")
    return metadata


def _changes(base: Targets | None, release: Targets) -> Changes:
    before = base.targets if base else {}
    base_version = base.version if base else 0
    if release.version != base_version + 1:
        raise FedspkError(
            f"the proposal has metadata version {release.version}, "
            f"the release before it {base_version}."
        )
    if release.delegations is not None or release.unrecognized_fields:
        raise FedspkError("the proposal says more than a release may; a release lists files only.")
    withdrawn = _withdrawn(base, release)
    new = {path: each for path, each in release.targets.items() if before.get(path) != each}
    for path, target in new.items():
        _check_new(path, target, is_known=path in before)
    added = {version for path in new if (version := version_at(path))}
    for kind, number in sorted(added):
        expected = latest_version(base, kind) + 1
        if number != expected:
            raise FedspkError(f"the proposal adds {kind} version {number}; {expected} is next.")
        for path in (model_path(kind, number), manifest_path(kind, number)):
            if path not in new:
                raise FedspkError(f"the proposal adds {kind} version {number} without {path}.")
    channels = sorted(name for path in new if (name := channel_at(path)))
    return Changes(tuple(sorted(added)), tuple(channels), withdrawn)


def _withdrawn(base: Targets | None, release: Targets) -> tuple[tuple[Kind, int], ...]:
    found = set()
    for path in base.targets if base else ():
        if path in release.targets:
            continue
        version = version_at(path)
        if version is None or version[1] == latest_version(base, version[0]):
            raise FedspkError(f"the proposal removes {path}; it stays until a later one is there.")
        found.add(version)
    for kind, number in sorted(found):
        for path in (model_path(kind, number), manifest_path(kind, number)):
            if path in release.targets:
                raise FedspkError(f"the proposal withdraws {kind} version {number} without {path}.")
    return tuple(sorted(found))


def _check_new(path: str, target: TargetFile, is_known: bool) -> None:
    if channel_at(path) is None:
        if is_known:
            raise FedspkError(f"the proposal alters {path}; what was released stays as it is.")
        if version_at(path) is None:
            raise FedspkError(f"the proposal adds {path!r}, which is no part of a release.")
    if set(target.hashes) != {"sha256"} or target.unrecognized_fields:
        raise FedspkError(f"the proposal must give {path} by its SHA-256 and length alone.")


def _has_signed(key: Key, metadata: Metadata[Targets]) -> bool:
    try:
        key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
    except (KeyError, UnverifiedSignatureError):
        return False
    return True


def _check_content(target: TargetFile, content: Content) -> None:
    try:
        if isinstance(content, bytes):
            target.verify_length_and_hashes(content)
            return
        with content.open("rb") as file:
            target.verify_length_and_hashes(file)
    except LengthOrHashMismatchError as error:
        raise FedspkError(f"{target.path}: is not the file of the proposal's metadata.") from error
    except OSError as error:
        raise FedspkError(f"{content!s}: cannot be read ({error.strerror}).") from error


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _read_metadata(path: Path) -> Metadata[Targets]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    return release_from(content, str(path))
