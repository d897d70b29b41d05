"""Keys: who a device is (Ed25519), what two devices share (X25519), and what is derived from it.

A device's identity lies in a JSON file that only its owner may read; the public halves of all
identities lie in the device register that the main server hands out.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedspk.errors import FedspkError
from fedspk.files import write_bytes
from fedspk.secagg.errors import MessageError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
SEAL_BYTES = 28
"""How much longer a sealed box is than its content: the nonce (12) and the tag (16)."""

_NONCE_BYTES = 12

# The points of order 1, 2, 4 and 8 of Curve25519 and of its twist, in all their encodings of 255
# bits: 0, 1, -1 modulo p = 2^255 - 19, two of order 8, and p and p + 1.
_LOW_ORDER = frozenset(
    [
        0,
        1,
        2**255 - 20,
        0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
        0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
        2**255 - 19,
        2**255 - 18,
    ]
)
_DEVICE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def derive_key(secret: bytes, context: bytes, label: str, *indices: int) -> bytes:
    """Return 32 bytes that depend on the secret, the context, the label and the indices alone.

    HKDF-SHA256 (RFC 5869) with the context as salt; the info names this protocol, the label with
    its length, and the indices as big-endian 32-bit integers.
    """
    name = label.encode()
    info = b"fedspk/1 " + struct.pack(f">B{len(name)}s{len(indices)}I", len(name), name, *indices)
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=context, info=info).derive(secret)


@dataclass(frozen=True)
class AgreementKey:
    """An X25519 key pair (RFC 7748), by its private half (32 bytes).

    Raises:
        MessageError: the private half is not 32 bytes.
    """

    private: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.private) != KEY_BYTES:
            raise MessageError("a private X25519 key must be 32 bytes.")

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh key pair from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @cached_property
    def public(self) -> bytes:
        """The public half (32 bytes)."""
        return self._key.public_key().public_bytes_raw()

    def agree(self, peer: bytes) -> bytes:
        """Return the secret (32 bytes) shared with the owner of the public key `peer`.

        Raises:
            MessageError: `peer` is not 32 bytes, or a point of low order, whose "secret" everybody
                knows (RFC 7748, section 6.1).
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise MessageError("a public X25519 key is malformed or of low order.") from error

    @cached_property
    def _key(self) -> X25519PrivateKey:
        # Parsing costs as much as an agreement: it computes the public half.
        return X25519PrivateKey.from_private_bytes(self.private)


def check_public_key(public: bytes) -> None:
    """Accept a public X25519 key with which every `AgreementKey` agrees on a secret.

    Costs nothing beside an agreement.

    Raises:
        MessageError: the key is not 32 bytes, or a point of low order.
    """
    # X25519 ignores the highest bit.
    if len(public) != KEY_BYTES or int.from_bytes(public, "little") % 2**255 in _LOW_ORDER:
        raise MessageError("a public X25519 key is malformed or of low order.")


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Return `plaintext` in a box of AES-256-GCM: random nonce, ciphertext, tag."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, box: bytes, associated: bytes) -> bytes:
    """Return the content of a box.

    Raises:
        MessageError: the box was not sealed with this key and associated data, or was altered.
    """
    try:
        return AESGCM(key).decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], associated)
    except (InvalidTag, ValueError) as error:
        raise MessageError("a sealed box does not open.") from error


def check_device_name(name: str) -> None:
    """Accept 1 to 64 letters, digits, dots, underscores and hyphens.

    Raises:
        MessageError: the name is anything else.
    """
    if not _DEVICE_NAME.fullmatch(name):
        raise MessageError(
            f"{name[:80]!r} is not a device name (1 to 64 letters, digits, '.', '_' or '-')."
        )


class Identity:
    """What a device signs with: its name and its Ed25519 key (RFC 8032).

    Raises:
        MessageError: the name is not a device name.
    """

    def __init__(self, device: str, key: Ed25519PrivateKey) -> None:
        check_device_name(device)
        self.device = device
        self._key = key

    @classmethod
    def generate(cls, device: str) -> Self:
        """Return a fresh identity for a device."""
        return cls(device, Ed25519PrivateKey.generate())

    @cached_property
    def public(self) -> bytes:
        """The public key (32 bytes), as it stands in the register."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the signature (64 bytes) of a message."""
        return self._key.sign(message)

    def save(self, path: Path) -> None:
        """Write the identity to a file that only its owner can read.

        The file is JSON: `format` (1), `device`, and `private_key` as unencrypted PKCS #8 PEM.

        Raises:
            FedspkError: the file cannot be written.
        """
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        content = _IdentityFile(1, self.device, pem.decode())
        write_bytes(Path(path), _json(content), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an identity.

        Raises:
            FedspkError: the file is missing, broken, or readable by others than its owner.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                data = file.read()
        except OSError as error:
            raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
        if mode & 0o077:
            raise FedspkError(
                f"{path}: holds a private key that others may read; run `chmod 600 {path}`."
            )
        try:
            content = msgspec.json.decode(data, type=_IdentityFile)
            key = load_pem_private_key(content.private_key.encode(), password=None)
            if not isinstance(key, Ed25519PrivateKey):
                raise ValueError("its private_key is not an Ed25519 key")
            return cls(content.device, key)
        except (ValueError, TypeError, UnsupportedAlgorithm, FedspkError) as error:
            raise FedspkError(f"{path}: is not an identity of a device ({error}).") from error


class DeviceRegister:
    """The devices that may take part: name -> Ed25519 public key (32 bytes).

    Raises:
        MessageError: a name is not a device name, or a key is not 32 bytes.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        for device, key in keys.items():
            check_device_name(device)
            if len(key) != KEY_BYTES:
                raise MessageError(f"the key of device {device} must be 32 bytes.")
        self._keys = dict(keys)

    @property
    def keys(self) -> Mapping[str, bytes]:
        """The public keys by device."""
        return MappingProxyType(self._keys)

    def __contains__(self, device: object) -> bool:
        return device in self._keys

    def verify(self, device: str, message: bytes, signature: bytes) -> None:
        """Accept a message that the device has signed.

        Raises:
            MessageError: the device is unknown, or the signature is not its own.
        """
        if device not in self._keys:
            raise MessageError(f"{device[:80]!r} is not in the device register.")
        try:
            Ed25519PublicKey.from_public_bytes(self._keys[device]).verify(signature, message)
        except (InvalidSignature, ValueError) as error:
            raise MessageError(f"a signature of device {device} does not verify.") from error

    def save(self, path: Path) -> None:
        """Write the register as JSON: `format` (1) and `devices`, name -> key in hex.

        Raises:
            FedspkError: the file cannot be written.
        """
        devices = {device: key.hex() for device, key in sorted(self._keys.items())}
        write_bytes(Path(path), _json(_RegisterFile(1, devices)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a register.

        Raises:
            FedspkError: the file is missing or broken.
        """
        path = Path(path)
        try:
            content = msgspec.json.decode(path.read_bytes(), type=_RegisterFile)
            return cls({device: bytes.fromhex(key) for device, key in content.devices.items()})
        except OSError as error:
            raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
        except (ValueError, FedspkError) as error:
            raise FedspkError(f"{path}: is not a device register ({error}).") from error


class _IdentityFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    device: str
    private_key: str


class _RegisterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1]
    devices: dict[str, str]


def _json(content: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
