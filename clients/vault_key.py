"""The key that everything on a device is sealed under, and what guards it.

`vault.key` names the device and says where the vault key comes from:

- "passphrase": the key itself, sealed under a key that Argon2id derives from a passphrase. The
  passphrase comes from the terminal, from a file that only its owner may read, or from a credential
  that systemd hands to a service, which a TPM may protect; never from the command line.
- "keyring": the operating system's keyring holds the key (optional package `keyring`).

There is no third kind: without a passphrase and without a safe keyring there is no vault.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from clients.secret_input import Secret, check_private
from fedspk.errors import FedspkError
from fedspk.files import read_json, write_bytes
from fedspk.secagg.errors import MessageError
from fedspk.secagg.keys import KEY_BYTES, seal, unseal

Protection: TypeAlias = Literal["passphrase", "keyring"]
AskPassphrase: TypeAlias = Callable[[], bytes]

KEY_FILE = "vault.key"
CREDENTIAL = "fedspk-vault"
"""The systemd credential that holds the passphrase."""

_PASSPHRASE = Secret("the passphrase of this device's vault", "--passphrase-file", CREDENTIAL)
_NEW_PASSPHRASE = Secret("the new passphrase", "--new-passphrase-file")

_FORMAT = 1
_SHORTEST_PASSPHRASE = 8  # bytes
_SERVICE = "fedspk-vault"
# Argon2id at RFC 9106's second recommended option (section 4).
_MEMORY_KIB, _PASSES, _LANES, _SALT_BYTES = 65_536, 3, 4, 16
# The keyrings that encrypt what they hold; others, such as keyrings.alt's, write plain files.
_SAFE_KEYRINGS = (
    "keyring.backends.SecretService",
    "keyring.backends.libsecret",
    "keyring.backends.kwallet",
    "keyring.backends.macOS",
    "keyring.backends.Windows",
)


@dataclass(frozen=True)
class VaultKey:
    """A device's name for itself (32 hex digits) and its vault key (32 bytes)."""

    device: str
    key: bytes

    def __repr__(self) -> str:
        return f"VaultKey({self.device})"


def new_key() -> VaultKey:
    """Return a fresh device name and vault key from the operating system's randomness."""
    return VaultKey(secrets.token_hex(16), secrets.token_bytes(KEY_BYTES))


def save_key(home: Path, key: VaultKey, protection: Protection, ask: AskPassphrase) -> None:
    """Write `vault.key`, readable by its owner alone.

    Args:
        home: the device's folder.
        key: what is to be kept.
        protection: what guards it.
        ask: returns the passphrase; called for that protection alone.

    Raises:
        FedspkError: the passphrase is too short, there is no safe keyring, or the file cannot be
            written.
    """
    content: dict[str, Any] = {"format": _FORMAT, "device": key.device, "protection": protection}
    if protection == "passphrase":
        passphrase = ask()
        if len(passphrase) < _SHORTEST_PASSPHRASE:
            raise FedspkError(
                f"the passphrase is too short; use at least {_SHORTEST_PASSPHRASE} characters."
            )
        salt = secrets.token_bytes(_SALT_BYTES)
        box = seal(_derive(passphrase, salt), key.key, _associated(key.device))
        content |= {"salt": salt.hex(), "box": box.hex()}
    else:
        try:
            _safe_keyring().set_password(_SERVICE, key.device, key.key.hex())
        except FedspkError:
            raise
        except Exception as error:  # every back end has its own kinds
            raise FedspkError(f"the keyring does not take the vault key ({error}).") from error
    write_bytes(home / KEY_FILE, json.dumps(content).encode(), 0o600)


def load_key(home: Path, ask: AskPassphrase) -> VaultKey:
    """Return the vault key of a device; `ask` returns the passphrase, where one is needed.

    Raises:
        FedspkError: the folder is no device's, others may read it, the passphrase is wrong, the
            keyring does not have the key, or `vault.key` was altered.
    """
    path = home / KEY_FILE
    if not path.exists():
        raise FedspkError(f"{home}: is no device's folder; make one with `fedspk device init`.")
    check_private(home)
    check_private(path)
    try:
        content = read_json(path)
        if content["format"] != _FORMAT:
            raise ValueError("another format")
        device = str(content["device"])
        if content["protection"] == "keyring":
            return VaultKey(device, _from_keyring(device))
        salt, box = bytes.fromhex(content["salt"]), bytes.fromhex(content["box"])
        if content["protection"] != "passphrase" or len(salt) != _SALT_BYTES:
            raise ValueError("unknown protection")
    except (KeyError, TypeError, ValueError) as error:
        raise FedspkError(
            f"{path}: is damaged or of another version; restore it from a backup."
        ) from error
    try:
        return VaultKey(device, unseal(_derive(ask(), salt), box, _associated(device)))
    except MessageError as error:
        raise FedspkError(f"{path}: the passphrase is wrong, or the file was altered.") from error


def protection_of(home: Path) -> Protection:
    """Return what guards the vault key of a device that `load_key` has opened."""
    protection: Protection = read_json(home / KEY_FILE)["protection"]
    return protection


def default_protection() -> Protection:
    """Return "keyring" where a safe one answers, else "passphrase"."""
    try:
        _safe_keyring()
    except FedspkError:
        return "passphrase"
    return "keyring"


def passphrase_source(file: Path | None, *, twice: bool = False) -> AskPassphrase:
    """Return the function that gets the passphrase when it is needed.

    From `file`, else from systemd's credential "fedspk-vault", else from the terminal, there
    `twice` when it is a new one.

    Raises (what is returned):
        FedspkError: the file cannot be read, or others can; or there is no terminal to ask at.
    """
    return lambda: _PASSPHRASE.read(file, twice=twice)


def new_passphrase_source(file: Path | None) -> AskPassphrase:
    """Return the function that gets the passphrase that replaces one: from `file` or a person."""
    return lambda: _NEW_PASSPHRASE.read(file, twice=True)


def _derive(passphrase: bytes, salt: bytes) -> bytes:
    try:
        kdf = Argon2id(
            salt=salt, length=KEY_BYTES, iterations=_PASSES, lanes=_LANES, memory_cost=_MEMORY_KIB
        )
    except UnsupportedAlgorithm as error:
        raise FedspkError(
            "this build of the package cryptography has no Argon2id; install its wheel from PyPI."
        ) from error
    return kdf.derive(passphrase)


def _associated(device: str) -> bytes:
    return json.dumps([_FORMAT, "vault key", device]).encode()


def _safe_keyring() -> Any:
    """Return the operating system's keyring, if it is one that encrypts."""
    try:
        import keyring
    except ImportError as error:
        raise FedspkError(
            "the package keyring is not installed; install it with: pip install 'fedspk[keyring]'"
        ) from error
    found = keyring.get_keyring()
    for backend in getattr(found, "backends", [found]):  # a chain asks several in turn
        if not type(backend).__module__.startswith(_SAFE_KEYRINGS):
            raise FedspkError(
                f"the keyring {type(backend).__module__} is not known to encrypt what it holds; "
                "protect the vault with a passphrase."
            )
    return found


def _from_keyring(device: str) -> bytes:
    try:
        found = _safe_keyring().get_password(_SERVICE, device)
        key = bytes.fromhex(found or "")
    except FedspkError:
        raise
    except Exception as error:  # every back end has its own kinds
        raise FedspkError(f"the keyring does not give the vault key ({error}).") from error
    if len(key) != KEY_BYTES:
        raise FedspkError("the keyring does not have this device's vault key; is it unlocked?")
    return key
