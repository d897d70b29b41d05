"""What devices, aggregators and operators say to the main server, beside fetching static files.

A device that has registered signs its requests with its Ed25519 key:

    Authorization: Fedspk-Device device=<32 hex digits>, time=<ms since 1970>, signature=<128 hex>

The signature covers method, path, device, time and body. The server accepts a time once and only
within `CLOCK_MARGIN` of its own, so that a request cannot be replayed.
Operators and aggregators send `Authorization: Bearer <token>`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedspk.errors import FedspkError, first_fault
from fedspk.release import ClientVersion, Hash, Version
from fedspk.secagg.keys import Identity

API = "/api/v1"
CLOCK_MARGIN = timedelta(minutes=5)

DeviceId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""What a device is called: random, made with its vault."""

DeviceState = Literal["serving", "updating", "failed"]
"""Whether all users are enrolled under the latest version, are about to be, or cannot be."""

Failure = Literal["unreachable", "refused", "incompatible", "disk full", "clock", "other"]
"""Why a device stays with its version, in one word: what exactly happened stays on the device."""

_AUTHORIZATION = re.compile(
    r"Fedspk-Device device=([0-9a-f]{32}), time=([0-9]{1,15}), signature=([0-9a-f]{128})"
)


class _Message(BaseModel):
    """A JSON body: nothing in it is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> bytes:
        """Return the body, which `from_json` reads."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what `to_json` wrote.

        Raises:
            FedspkError: a field is unknown, missing or out of range.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise FedspkError(f"the message is wrong: {first_fault(error)}.") from error


class Registration(_Message):
    """`POST /devices`: a device gives its public key; signed by it, like all that follows.

    Args:
        device: the name it gave itself.
        public_key: Ed25519, 64 hex digits.
        token: the operator's one-time token.
    """

    device: DeviceId
    public_key: Hash
    token: str = Field(min_length=16, max_length=128)


class Report(_Message):
    """`PUT /devices/<device>/report`: what a device runs. Nothing of users or voices.

    Args:
        version: the version of the model in use; None when it came from a file.
        content_hash: of the model in use.
        state: see `DeviceState`.
        failure: why, when the state is "failed".
        attempted: the version that it is changing to, or failed to.
        client: the fedspk that it runs.
    """

    version: Version | None
    content_hash: Hash
    state: DeviceState
    failure: Failure | None = None
    attempted: Version | None = None
    client: ClientVersion

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if (self.state == "failed") != (self.failure is not None):
            raise ValueError('a failure is stated with the state "failed", and only then')
        return self


class ProposedRelease(_Message):
    """`POST /proposals`: a release for the main server to sign and publish (`fedspk.proposals`).

    Args:
        release: the metadata as JSON text, with the proposer's signature.
        files: new manifests and channels by target path, in base64; model files have been uploaded
            under the SHA-256 by which the metadata list them.
    """

    release: str = Field(min_length=1)
    files: dict[str, Base64Bytes] = Field(default_factory=dict)


@dataclass(frozen=True)
class SignedRequest:
    """Who signed a request, when (milliseconds since 1970), and how."""

    device: str
    time_ms: int
    signature: bytes

    @classmethod
    def sign(cls, identity: Identity, method: str, path: str, body: bytes, time_ms: int) -> Self:
        """Return the signature of a request; `path` is that of the URL."""
        text = _signed(method, path, identity.device, time_ms, body)
        return cls(identity.device, time_ms, identity.sign(text))

    @classmethod
    def from_header(cls, text: str) -> Self | None:
        """Read the header `Authorization`; None if it is none of a device."""
        match = _AUTHORIZATION.fullmatch(text)
        return cls(match[1], int(match[2]), bytes.fromhex(match[3])) if match else None

    def header(self) -> str:
        """Return the header `Authorization`."""
        return (
            f"Fedspk-Device device={self.device}, time={self.time_ms}, "
            f"signature={self.signature.hex()}"
        )

    def verifies(self, public_key: bytes, method: str, path: str, body: bytes) -> bool:
        """Say whether the owner of a public key (32 bytes) signed this request."""
        text = _signed(method, path, self.device, self.time_ms, body)
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.signature, text)
        except (InvalidSignature, ValueError):
            return False
        return True


def _signed(method: str, path: str, device: str, time_ms: int, body: bytes) -> bytes:
    digest = hashlib.sha256(body).hexdigest()
    return "\n".join(["fedspk request 1", method, path, device, str(time_ms), digest]).encode()
