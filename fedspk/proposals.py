"""A release that one party proposes and the other signs.

What devices may use is listed in the metadata of the role "release", which counts only with the
signatures of two parties, the aggregator and the main server. A proposal is a folder:

- `release.json`: the next release metadata, with the signatures given so far,
- `base.json`: the release metadata that it follows (absent before the first release),
- `targets/`: the files that are new in it or have changed.

Rules that every party holds a proposal to before it signs:

1. The base carries the signer's own signature, unless this is the first release.
2. The version of the metadata is the base's plus one; nothing is delegated further.
3. Nothing that was released is altered, except channels. A version may be withdrawn, with both its
   files, but never the newest of its kind, so that no number is used twice.
4. A new version has the next number, and both its files; model and manifest agree.
5. A channel names a version of the speaker model that is in the release.
6. The files in the folder are those of the metadata, to the byte.

Only a run's intermediate versions that no channel names are withdrawn: the main server, which
knows all channels and manifests, sees to that.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Self

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
        """Accept a proposal that keeps rules 2 to 6.

        Raises:
            FedspkError: it breaks one of them.
        """
        changes = self.changes
        if self.release.signed.expires > datetime.now(UTC) + LIFETIME + timedelta(days=1):
            raise FedspkError(
                f"the proposal is signed until {self.release.signed.expires:%Y-%m-%d}; "
                f"no release may live longer than {LIFETIME.days} days."
            )
        for path, content in self.files.items():
            _check_content(self.release.signed.targets[path], content)
        for kind, version in changes.versions:
            model = self.files[model_path(kind, version)]
            if not isinstance(model, Path):
                raise TypeError("models are files")
            check_model_file(model, self.manifest(kind, version))
        for name in changes.channels:
            self.channel(name)

    def check_base(self, keys: Collection[Key]) -> None:
        """Accept a base that the owner of `keys` signed with one of them (rule 1).

        Raises:
            FedspkError: it did not.
        """
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
            copy_content(content, folder / "targets" / path)
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


def copy_content(content: Content, path: Path) -> None:
    """Write a target's content to a file, atomically."""
    with atomic_write(path) as out:
        if isinstance(content, bytes):
            out.write(content)
        else:
            with content.open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 20)


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
