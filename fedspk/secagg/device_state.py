"""What a device remembers between two messages, as bytes for its disk.

A version byte, the first 16 bytes of the content's SHA-256, then the content in MessagePack. It
holds secrets: for its owner's eyes alone, and never to be restored from a backup, since a sum
answered twice tells more than its sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from hashlib import sha256

import msgspec
from msgspec.structs import replace

from fedspk.errors import FedspkError
from fedspk.secagg.masks import Stream
from fedspk.secagg.messages import KeyOffer, OfferRequest, Terms

_VERSION = b"\x01"
_DIGEST_BYTES = 16


class Stage(IntEnum):
    """What a device has answered last."""

    SHARED = 1
    MASKED = 2
    SIGNED = 3


class _Secret(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class Offered(_Secret, frozen=True):
    """An offer that no sum has used yet, with the private halves of its keys."""

    request: OfferRequest
    offer: KeyOffer
    sealing_key: bytes
    masking_key: bytes
    seed: bytes


class Neighbour(_Secret, frozen=True):
    """What a device has in common with one of its neighbours in a sum.

    opening_key: opens the neighbour's box.
    mask: the common mask; forgotten once it is applied.
    our_proof, their_proof: that one's vector carries the common mask.
    box: the neighbour's shares, sealed; none, if it did not share them.
    """

    index: int
    device: str
    opening_key: bytes
    mask: Stream | None
    our_proof: bytes
    their_proof: bytes
    box: bytes | None = None


class ActiveSum(_Secret, frozen=True):
    """A sum in which a device has shared its secrets.

    mask: the device's own mask; forgotten once it is applied.
    own_share: what the device holds of its own seed (full graph).
    dead: who failed, as the device has signed it.
    """

    terms: Terms
    context: bytes
    index: int
    stage: Stage
    neighbours: tuple[Neighbour, ...]
    mask: Stream | None
    own_share: bytes | None
    dead: tuple[int, ...] = ()

    def after_masking(self, boxes: Mapping[int, bytes]) -> ActiveSum:
        """Return the sum with the boxes that came, by sender, and without the masks."""
        return replace(
            self,
            stage=Stage.MASKED,
            mask=None,
            neighbours=tuple(
                replace(peer, mask=None, our_proof=b"", box=boxes.get(peer.index))
                for peer in self.neighbours
            ),
        )


class DeviceState(_Secret, frozen=True):
    """Everything a device remembers.

    latest: the last sum of each purpose for which it has offered keys; nothing of earlier runs.
    offered: the offers among them that are still unused.
    active: the sum it takes part in.
    """

    device: str
    latest: dict[str, OfferRequest] = {}
    offered: dict[str, Offered] = {}
    active: ActiveSum | None = None

    def encode(self) -> bytes:
        """Return the bytes that `decode` reads."""
        content = msgspec.msgpack.encode(self)
        return _VERSION + _digest(content) + content

    @classmethod
    def decode(cls, data: bytes) -> DeviceState:
        """Read what `encode` wrote.

        Raises:
            FedspkError: the bytes are damaged or of another version.
        """
        digest, content = data[1 : 1 + _DIGEST_BYTES], data[1 + _DIGEST_BYTES :]
        if data[:1] == _VERSION and digest == _digest(content):
            try:
                return msgspec.msgpack.decode(content, type=cls)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass
        raise FedspkError(
            "The state of this device's secure sums is damaged or of another version; "
            "without it, the device starts with a fresh offer."
        )


def _digest(content: bytes) -> bytes:
    return sha256(content).digest()[:_DIGEST_BYTES]
