"""Where target files lie: models, manifests and channels, in a local folder or any fsspec store.

A file is named like its target, with its SHA-256 before the last part:
`models/7/<hash>.manifest.json`. So a name means the same bytes forever.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fedspk.errors import FedspkError
from fedspk.files import PARTIAL, atomic_write
from fedspk.proposals import Content, copy_content
from fedspk.release import channel_at, version_at
from server.faults import UnavailableError

_NAME = re.compile(r"((?:models|gan)/[1-9][0-9]{0,8}/|channels/)([0-9a-f]{64})\.([a-z.]+)")


class Artefacts(Protocol):
    """A store of target files.

    Raises (all methods):
        FedspkError: the store cannot be read or written.
    """

    def size(self, name: str) -> int | None:
        """Return a file's length in bytes; None if there is none."""

    def read(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to before `end`, or to where the file ends."""

    def write(self, name: str, content: Content) -> None:
        """Store a file, whole or not at all; one that is there already stays as it is.

        Content that has not the hash in the name is refused.
        """

    def fetch(self, name: str, folder: Path) -> Path:
        """Return a local file with the content, a copy in `folder` if need be."""

    def keep_only(self, names: Collection[str]) -> None:
        """Delete all other target files, and what killed writes left; nobody may be writing."""


def open_artefacts(url: str | None, folder: Path) -> Artefacts:
    """Return the store at an fsspec URL, or a local folder if there is none.

    Raises:
        FedspkError: no installed package knows such a URL, or it is wrong.
    """
    if url is None:
        return LocalArtefacts(folder)
    if not re.match("[a-z0-9]+:", url) or url.startswith("file:"):
        local = Path(url.removeprefix("file://"))
        if not local.is_absolute():
            raise FedspkError(f"artefacts {url}: is no absolute path; write file:///srv/artefacts.")
        return LocalArtefacts(local)
    return RemoteArtefacts(url)


def hash_in(name: str) -> str | None:
    """Return the SHA-256 in a target file's name; None if it is no such name.

    >>> hash_in("channels/" + 64 * "a" + ".stable.json") == 64 * "a"
    True
    >>> hash_in("channels/../keys/stable.json")
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    target = match[1] + match[3]
    return match[2] if version_at(target) or channel_at(target) else None


class LocalArtefacts:
    """Target files in a local folder; see `Artefacts`."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def size(self, name: str) -> int | None:
        try:
            return (self._folder / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(self._folder / name, error) from error

    def read(self, name: str, start: int, end: int) -> bytes:
        try:
            with (self._folder / name).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise _unreadable(self._folder / name, error) from error

    def write(self, name: str, content: Content) -> None:
        if self.size(name) != _length(content):
            with atomic_write(self._folder / name) as out:
                copy_content(content, out, _hash(name), name)

    def fetch(self, name: str, folder: Path) -> Path:  # noqa: ARG002 (others need it)
        return self._folder / name

    def keep_only(self, names: Collection[str]) -> None:
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder).as_posix()
            if _is_ours(name) and name not in names:
                path.unlink(missing_ok=True)


class RemoteArtefacts:
    """Target files in any store that fsspec knows; see `Artefacts`.

    A store that fails is nobody's fault who asks, so its errors are `UnavailableError`.
    A file gets its name by a move, which object stores (a copy) and file servers (a rename) do at
    once. What killed uploads leave has another name until the next change.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self._shown = re.sub("//[^/@]*@", "//", url.rstrip("/"))  # without a password
        with self._access("", "used"):
            # A listing kept from before a change would be wrong.
            self._store, self._folder = fsspec.url_to_fs(
                url.rstrip("/"), skip_instance_cache=True, use_listings_cache=False
            )

    def size(self, name: str) -> int | None:
        with self._access(name, "read"):
            try:
                return int(self._store.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int, end: int) -> bytes:
        with self._access(name, "read"):
            return bytes(self._store.cat_file(self._path(name), start=start, end=end))

    def write(self, name: str, content: Content) -> None:
        if self.size(name) == _length(content):
            return
        path = self._path(name)
        temporary = f"{path}{PARTIAL}"
        with self._access(name, "written"):
            self._store.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._store.open(temporary, "wb") as out:
                copy_content(content, out, _hash(name), name)
            self._store.mv(temporary, path)

    def fetch(self, name: str, folder: Path) -> Path:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._access(name, "read"):
            self._store.get_file(self._path(name), str(path))
        return path

    def keep_only(self, names: Collection[str]) -> None:
        with self._access("", "read"):
            for path in self._store.find(self._folder):
                name = path[len(self._folder) :].lstrip("/")
                if _is_ours(name) and name not in names:
                    self._store.rm_file(path)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    @contextmanager
    def _access(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except FedspkError:
            raise
        except Exception as error:  # what a store's package raises is up to it
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"{self._shown}/{name}: cannot be {what} ({reason}).") from error


def _is_ours(name: str) -> bool:
    """Say whether a file is a target, or what a killed write left of one."""
    if name.endswith(PARTIAL):
        return name.startswith(("models/", "gan/", "channels/"))
    return hash_in(name) is not None


def _hash(name: str) -> str:
    digest = hash_in(name)
    if digest is None:
        raise ValueError(f"{name!r} is no target's name")
    return digest


def _length(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _unreadable(path: Path, error: OSError) -> FedspkError:
    return FedspkError(f"{path}: cannot be read ({error.strerror}).")
