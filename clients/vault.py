"""The device's vault: enrolment audio and profiles, sealed; forgetting a user destroys a key.

    home/vault.key              the vault key, sealed itself (`clients.vault_key`)
    home/state.box              which model versions are in use (`clients.versions`)
    home/registration.box       the main server that knows the device (`clients.followed`)
    home/server.box             the main server whose versions it follows (`clients.followed`)
    home/check.box              how the last look for a new version went (`clients.followed`)
    home/remote/                what the main server signed, and downloads: nothing of the device
    home/users/<id>/user.key    the user's data key, sealed under the vault key
    home/users/<id>/card.box    the user's name and list of recordings
    home/users/<id>/<n>.audio   a recording, 16-bit PCM at 16 kHz
    home/users/<id>/<model hash>.<revision>.profile

Every box is AES-256-GCM under the user's data key (state and data keys: under the vault key). Its
associated data name format, device, kind, user, model hash and place, so that no box opens in
another's stead. Nothing is stored in clear: ids are random, names are inside the card. The device's
identity is derived from the vault key and stored nowhere.

Each change has one file whose renaming makes it true: `user.key` for a new user, `card.box` for
more recordings, `state.box` for another model. What a killed process left beside it is removed when
the vault is next written. To forget a user, `user.key` is overwritten where it lies: a full disk is
no obstacle. A user whose card does not open is passed over, and can be forgotten by the id.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clients.secret_input import check_private
from clients.vault_key import (
    KEY_FILE,
    AskPassphrase,
    Protection,
    VaultKey,
    load_key,
    new_key,
    protection_of,
    save_key,
)
from fedspk.audio import FloatArray
from fedspk.errors import FedspkError
from fedspk.files import PARTIAL, explained, sync, write_bytes
from fedspk.profiles import VersionedProfile
from fedspk.secagg.errors import MessageError
from fedspk.secagg.keys import KEY_BYTES, SEAL_BYTES, Identity, derive_key, seal, unseal

_FORMAT = 1
_FORGOTTEN = b"forgotten"
_USER_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST_NAME = 200
_MADE_FIRST = {"models", "remote", "state.box", "server.box", "check.box", "lock", "update.lock"}


class VaultError(FedspkError):
    """A box does not open: it was altered, or lies where it does not belong."""


class UnknownUserError(FedspkError):
    """Nobody of this name is enrolled."""


Note = Literal["server", "check", "registration"]
"""Boxes that may be absent."""


@dataclass(frozen=True)
class User:
    """An enrolled person, as the card says.

    Args:
        id: random, 32 hex digits: the name of the folder.
        name: who it is.
        recordings: numbers of the recordings, in the order in which they came.
        seconds: of all of them together.
        revision: rises with every enrolment; profiles belong to one.
        key: the data key (32 bytes).
    """

    id: str
    name: str
    recordings: tuple[int, ...]
    seconds: float
    revision: int
    key: bytes = field(repr=False)

    def is_called(self, name: str) -> bool:
        """Say whether this is the user's name, in whatever spelling looks the same."""
        return self.name == _canonical(name)


@dataclass(frozen=True)
class _Place:
    """What a box holds and where it belongs: with format and device, its associated data."""

    kind: Literal["state", "user key", "card", "audio", "profile"] | Note
    user: str = ""
    model_hash: str = ""
    item: int = 0


class Vault:
    """The boxes of one device.

    Raises (all methods):
        VaultError: a box does not open.
        FedspkError: a file is missing or cannot be written.
    """

    def __init__(self, home: Path, key: VaultKey) -> None:
        self.home = Path(home)
        self.device = key.device
        self._key = key.key

    @classmethod
    def prepare(cls, home: Path) -> Self:
        """Return the vault of a new device whose key is in memory alone until `keep` is called.

        Raises:
            FedspkError: the folder is a device's already, or holds something else, or is open to
                others.
        """
        home = Path(home)
        if (home / KEY_FILE).exists():
            raise FedspkError(f"{home}: is a device's folder already; choose another one.")
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(home)
        strange = {path.name for path in home.iterdir()} - _MADE_FIRST
        if any(not name.endswith(PARTIAL) for name in strange):
            raise FedspkError(f"{home}: holds other files; choose an empty folder.")
        for note in get_args(Note):  # an interrupted call's: its key is lost
            (home / f"{note}.box").unlink(missing_ok=True)
        return cls(home, new_key())

    def keep(self, protection: Protection, ask: AskPassphrase) -> None:
        """Write the vault key, guarded: from now on the folder is a device's."""
        save_key(self.home, VaultKey(self.device, self._key), protection, ask)

    def change_passphrase(self, new: AskPassphrase) -> None:
        """Guard the vault key by another passphrase; the vault key stays the same.

        Raises:
            FedspkError: the new passphrase is too short, or the key is in a keyring.
        """
        if protection_of(self.home) == "keyring":
            raise FedspkError(
                f"{self.home}: its key is guarded by the keyring, not by a passphrase."
            )
        passphrase = new()  # a person who types it keeps nobody waiting
        with self.writing():
            self.keep("passphrase", lambda: passphrase)

    @classmethod
    def open(cls, home: Path, ask: AskPassphrase) -> Self:
        """Return the vault of a device; `ask` gives the passphrase where one is needed."""
        return cls(home, load_key(Path(home), ask))

    @property
    def vault_key(self) -> VaultKey:
        """What opens the vault; for a process that is to help this one."""
        return VaultKey(self.device, self._key)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let this process alone write, and remove what killed ones left. Reading needs no lock."""
        path = self.home / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise explained(error, path) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                self._tidy()
            except OSError as error:
                raise explained(error, self.home) from error
            yield
        finally:
            os.close(descriptor)

    def read_state(self) -> bytes:
        """Return what `write_state` wrote."""
        return self._unseal(self._key, self.home / "state.box", _Place("state"))

    def write_state(self, content: bytes) -> None:
        """Replace the device's state."""
        self._seal(self._key, self.home / "state.box", content, _Place("state"))

    def identity(self) -> Identity:
        """Return what the device signs with, under its own name."""
        seed = derive_key(self._key, self.device.encode(), "device identity")
        return Identity(self.device, Ed25519PrivateKey.from_private_bytes(seed))

    def read_note(self, kind: Note) -> bytes | None:
        """Return what `write_note` wrote; None if nothing was."""
        path = self.home / f"{kind}.box"
        return self._unseal(self._key, path, _Place(kind)) if path.exists() else None

    def write_note(self, kind: Note, content: bytes) -> None:
        """Replace a note."""
        self._seal(self._key, self.home / f"{kind}.box", content, _Place(kind))

    def users(self) -> list[User]:
        """Return who is enrolled, by name, but for the `damaged`."""
        return self._look()[0]

    def damaged(self) -> dict[str, FedspkError]:
        """Return the ids of users whose cards do not open, and why."""
        return self._look()[1]

    def unserved(self, model_hash: str) -> dict[str, FedspkError]:
        """Return the ids of users whom nobody can verify under a model, and why.

        They are the `damaged`, and those of whom neither profile nor recordings open.
        """
        users, unserved = self._look()
        for user in users:
            try:
                self.profile(user, model_hash)
            except FedspkError:
                try:
                    self.recordings(user)  # a profile is made anew of them
                except FedspkError as error:
                    unserved[user.id] = error
        return unserved

    def user(self, name: str) -> User:
        """Return an enrolled user.

        Raises:
            UnknownUserError: nobody of this name is enrolled.
        """
        users, damaged = self._look()
        for user in users:
            if user.is_called(name):
                return user
        for user_id, error in damaged.items():
            raise VaultError(
                f"{name!r} is not among the users whose boxes open: {error} Put back a backup of "
                f"it, or do `fedspk device forget --user {user_id}` and enrol anew."
            )
        raise UnknownUserError(f"{name!r} is not enrolled; do it with `fedspk device enroll`.")

    def recordings(self, user: User) -> list[FloatArray]:
        """Return the enrolment audio, each (samples,) float32 at 16 kHz."""
        sealed = [
            (self._audio_path(user, n), _Place("audio", user.id, item=n)) for n in user.recordings
        ]
        return [from_pcm(self._unseal(user.key, path, place)) for path, place in sealed]

    def has_profile(self, user: User, model_hash: str) -> bool:
        """Say whether the user's present recordings have a profile by this model."""
        return self._profile_path(user, model_hash).exists()

    def profile(self, user: User, model_hash: str) -> VersionedProfile:
        """Return the profile that this model made of the user's present recordings."""
        path = self._profile_path(user, model_hash)
        place = _Place("profile", user.id, model_hash, user.revision)
        return VersionedProfile.from_bytes(self._unseal(user.key, path, place))

    def save_profile(self, user: User, profile: VersionedProfile) -> None:
        """Keep a profile of the user's present recordings."""
        path = self._profile_path(user, profile.model_hash)
        place = _Place("profile", user.id, profile.model_hash, user.revision)
        self._seal(user.key, path, profile.to_bytes(), place)

    def enrol(self, before: User | None, name: str, audio: Sequence[bytes]) -> User:
        """Store recordings and return the user that `commit` makes of them.

        Args:
            before: the user as enrolled so far, or None for a new one.
            name: of the user.
            audio: the recordings, as `to_pcm` gives them.
        """
        name = _canonical(name)
        if not name or len(name) > _LONGEST_NAME or not name.isprintable():
            raise FedspkError(f"{name!r} will not do as a user's name; use a word or two.")
        first = max(before.recordings, default=-1) + 1 if before else 0
        numbers = tuple(range(first, first + len(audio)))
        user = User(
            id=before.id if before else secrets.token_hex(16),
            name=name,
            recordings=(*(before.recordings if before else ()), *numbers),
            seconds=(before.seconds if before else 0.0) + sum(map(pcm_seconds, audio)),
            revision=before.revision + 1 if before else 1,
            key=before.key if before else secrets.token_bytes(KEY_BYTES),
        )
        for number, data in zip(numbers, audio, strict=True):
            place = _Place("audio", user.id, item=number)
            self._seal(user.key, self._audio_path(user, number), data, place)
        return user

    def commit(self, user: User) -> None:
        """Make an enrolment true, after its profiles were saved."""
        folder = self._folder(user.id)
        card = {
            "name": user.name,
            "recordings": user.recordings,
            "seconds": user.seconds,
            "revision": user.revision,
        }
        content = json.dumps(card).encode()
        self._seal(user.key, folder / "card.box", content, _Place("card", user.id))
        if not (folder / "user.key").exists():
            self._seal(self._key, folder / "user.key", user.key, _Place("user key", user.id))

    def forget(self, user: User) -> None:
        """Destroy the user's data key, and then the boxes that nothing opens any more."""
        self._destroy(self._folder(user.id))

    def forget_damaged(self, user_id: str) -> None:
        """Do the same with one of the `damaged`."""
        if user_id not in self.damaged():
            raise UnknownUserError(f"{user_id}: no user of this id is damaged.")
        self._destroy(self._folder(user_id))

    def drop_profiles(self, keep: set[str]) -> None:
        """Delete the profiles of all models but these, and those of former revisions."""
        for user in self.users():
            kept = {self._profile_path(user, model_hash) for model_hash in keep}
            for path in set(self._folder(user.id).glob("*.profile")) - kept:
                path.unlink()

    def _tidy(self) -> None:
        for folder in self._folders():
            if not _is_alive(folder):
                self._remove(folder)
                continue
            try:
                user = self._card(folder)
            except FedspkError:
                continue
            kept = {self._audio_path(user, number) for number in user.recordings}
            for path in set(folder.glob("*.audio")) - kept:
                path.unlink()
        for path in self.home.rglob(f".*{PARTIAL}"):
            if self.home / "remote" not in path.parents:  # who follows a server writes there
                path.unlink(missing_ok=True)

    def _destroy(self, folder: Path) -> None:
        key = folder / "user.key"
        try:
            _overwrite(key, _FORGOTTEN + secrets.token_bytes(KEY_BYTES + SEAL_BYTES))
        except OSError:  # a file system that writes elsewhere, and is full
            key.unlink()
        self._remove(folder)

    def _remove(self, folder: Path) -> None:
        # The key goes last: while it is there, it says that the rest is to go.
        for path in folder.iterdir():
            if path.name != "user.key":
                path.unlink()
        shutil.rmtree(folder)
        sync(folder.parent)

    def _look(self) -> tuple[list[User], dict[str, FedspkError]]:
        users, damaged = [], {}
        for folder in filter(_is_alive, self._folders()):
            try:
                users.append(self._card(folder))
            except FedspkError as error:
                if _is_alive(folder):  # else forgotten this moment, by another process
                    damaged[folder.name] = error
        return sorted(users, key=lambda user: user.name), damaged

    def _card(self, folder: Path) -> User:
        key = self._unseal(self._key, folder / "user.key", _Place("user key", folder.name))
        card = json.loads(self._unseal(key, folder / "card.box", _Place("card", folder.name)))
        card["recordings"] = tuple(card["recordings"])
        return User(id=folder.name, key=key, **card)

    def _folders(self) -> list[Path]:
        users = self.home / "users"
        found = users.iterdir() if users.exists() else iter(())
        return [folder for folder in found if _USER_ID.fullmatch(folder.name)]

    def _folder(self, user_id: str) -> Path:
        return self.home / "users" / user_id

    def _audio_path(self, user: User, number: int) -> Path:
        return self._folder(user.id) / f"{number}.audio"

    def _profile_path(self, user: User, model_hash: str) -> Path:
        return self._folder(user.id) / f"{model_hash}.{user.revision}.profile"

    def _seal(self, key: bytes, path: Path, data: bytes, place: _Place) -> None:
        write_bytes(path, seal(key, data, self._associated(place)), 0o600)

    def _unseal(self, key: bytes, path: Path, place: _Place) -> bytes:
        try:
            box = path.read_bytes()
        except OSError as error:
            raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
        try:
            return unseal(key, box, self._associated(place))
        except MessageError as error:
            raise VaultError(
                f"{path}: was altered, or belongs to another device, user or model."
            ) from error

    def _associated(self, place: _Place) -> bytes:
        return json.dumps([_FORMAT, self.device, *astuple(place)]).encode()


def _overwrite(path: Path, data: bytes) -> None:
    """Write over the first bytes of a file, where they lie; `data` is cut to its length."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, data[: os.fstat(descriptor).st_size], 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(folder: Path) -> bool:
    """Say whether a user's folder is whole: not left by an interrupted enrolment, not forgotten."""
    try:
        return not (folder / "user.key").read_bytes().startswith(_FORGOTTEN)
    except FileNotFoundError:
        return False


def _canonical(name: str) -> str:
    """Return the one spelling of a name among those that look the same."""
    return unicodedata.normalize("NFC", name.strip())


def to_pcm(audio: FloatArray) -> bytes:
    """Return (samples,) float32 as 16-bit little-endian PCM: what the vault keeps of a sound."""
    samples = np.clip(np.rint(audio * 32768.0), -32768, 32767)
    return bytes(samples.astype("<i2").data)


def from_pcm(data: bytes) -> FloatArray:
    """Return the sound, (samples,) float32, of 16-bit PCM."""
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768.0)


def pcm_seconds(data: bytes) -> float:
    """Return how long 16-bit PCM at 16 kHz lasts."""
    return len(data) / 32_000
