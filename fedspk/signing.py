"""Keys that sign releases and the metadata round them: Ed25519, one PEM file each.

A private key lies in a file that only its owner may read (mode 0600), as PKCS #8, encrypted when
there is a passphrase; a public key lies beside it as `<file>.pub`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from fedspk.errors import FedspkError
from fedspk.files import write_bytes

Passphrase = Callable[[Path], bytes]
"""Asked for the passphrase of a key file, once that is known to be encrypted."""

OWNER = "x-fedspk-owner"
"""Where metadata say whose key a key is."""


def new_key(owner: str) -> CryptoSigner:
    """Return a new key, whose public half says whose it is."""
    private = Ed25519PrivateKey.generate()
    return CryptoSigner(private, owned(SSlibKey.from_crypto(private.public_key()), owner))


def save_key(path: Path, signer: CryptoSigner, passphrase: bytes | None = None) -> None:
    """Write the private half of a key to a new file, encrypted if there is a passphrase.

    Raises:
        FedspkError: there is such a file already, or it cannot be written.
    """
    if Path(path).exists():
        raise FedspkError(f"{path}: is there already; a key is never overwritten.")
    pem = signer.private_bytes
    if passphrase is not None:
        private = load_pem_private_key(pem, None)
        how = BestAvailableEncryption(passphrase)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
    write_bytes(path, pem, mode=0o600)


def save_public_key(path: Path, key: SSlibKey) -> None:
    """Write a public key in PEM.

    Raises:
        FedspkError: the file cannot be written.
    """
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    write_bytes(path, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def load_key(path: Path, passphrase: Passphrase) -> CryptoSigner:
    """Read a private key.

    Raises:
        FedspkError: the file is missing, broken or readable by others, or the passphrase is wrong.
    """
    path = Path(path)
    pem = read_secret(path)
    secret = passphrase(path) if is_encrypted(pem) else None
    try:
        private = load_pem_private_key(pem, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = "its passphrase is another" if secret is not None else "it is damaged"
        raise FedspkError(f"{path}: this private key cannot be read; {reason}.") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise FedspkError(f"{path}: is not an Ed25519 key; make one with `fedspk server new-key`.")
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


def is_encrypted(pem: bytes) -> bool:
    """Say whether a private key in PEM needs a passphrase."""
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem


def load_public_key(path: Path) -> SSlibKey:
    """Read a public key.

    Raises:
        FedspkError: the file is missing or is not an Ed25519 public key in PEM.
    """
    path = Path(path)
    try:
        public = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FedspkError(f"{path}: is not a public key in PEM ({error}).") from error
    if not isinstance(public, Ed25519PublicKey):
        raise FedspkError(f"{path}: is not an Ed25519 key; make one with `fedspk server new-key`.")
    return SSlibKey.from_crypto(public)


def owned(key: SSlibKey, owner: str) -> SSlibKey:
    """Return a public key as metadata list it: with the name of whose it is."""
    return SSlibKey(key.keyid, key.keytype, key.scheme, key.keyval, {OWNER: owner})


def read_secret(path: Path) -> bytes:
    """Return the content of a file that nobody but its owner may read.

    A systemd credential is guarded by its folder; its group bits may show the mask of an ACL.

    Raises:
        FedspkError: the file cannot be read, or others may read it.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    is_credential = credentials is not None and Path(path).parent == Path(credentials)
    try:
        with Path(path).open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    if mode & (0o007 if is_credential else 0o077):
        raise FedspkError(f"{path}: holds a secret that others may read; run `chmod 600 {path}`.")
    return content
