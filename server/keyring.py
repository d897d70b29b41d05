"""The private keys at hand, and the passphrases that open them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from getpass import getpass
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from fedspk.errors import FedspkError
from fedspk.signing import is_encrypted, load_key, read_secret


def at_hand(
    folder: Path, more: Iterable[Path], passphrases: Path | None
) -> dict[str, CryptoSigner]:
    """Return the keys of a key folder (`*.pem`) and of further files; see `loaded`."""
    return loaded([*sorted(folder.glob("*.pem")), *more], passphrases)


def loaded(files: Iterable[Path], passphrases: Path | None) -> dict[str, CryptoSigner]:
    """Return the keys in files, by key id.

    Args:
        files: private keys.
        passphrases: holds the passphrase of encrypted keys; without, the terminal is asked.

    Raises:
        FedspkError: a key cannot be read or opened, or others may read it.
    """
    secret = _Passphrase(passphrases)
    signers = [load_key(path, secret) for path in files]
    return {signer.public_key.keyid: signer for signer in signers}


def any_encrypted(folder: Path) -> bool:
    """Say whether a key of a key folder is encrypted, so that its successors must be, too."""
    return any(is_encrypted(read_secret(path)) for path in folder.glob("*.pem"))


def new_passphrase(encrypt: bool, passphrases: Path | None) -> bytes | None:
    """Return the passphrase for keys to be made; None where they are not to be encrypted.

    Raises:
        FedspkError: there is no terminal to ask, or the two answers differ.
    """
    if passphrases is not None:
        return _read(passphrases)
    if not encrypt:
        return None
    first = _ask("Passphrase for the new keys: ")
    if first != _ask("The same again: "):
        raise FedspkError("the two passphrases differ; nothing was made.")
    return first


class _Passphrase:
    """Asks once, and tries the same answer on every key."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: bytes | None = None

    def __call__(self, path: Path) -> bytes:
        if self._known is None:
            self._known = _read(self._file) if self._file else _ask(f"Passphrase of {path}: ")
        return self._known


def _read(path: Path) -> bytes:
    secret = read_secret(path).rstrip(b"\r\n")
    if not secret:
        raise FedspkError(f"{path}: holds no passphrase.")
    return secret


def _ask(question: str) -> bytes:
    if not sys.stdin.isatty():
        raise FedspkError("a passphrase is needed and there is no terminal; use --passphrase-file.")
    secret = getpass(question).encode()
    if not secret:
        raise FedspkError("the passphrase is empty; nothing was done.")
    return secret
