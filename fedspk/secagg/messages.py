"""What aggregator and devices say to each other in a secure sum, and what they sign.

    aggregator -> device    device -> aggregator
    OfferRequest            KeyOffer            fresh keys, signed
    ShareRequest            SharesReply         the cohort's keys; sealed shares of one's secrets
    UploadRequest           UploadReply         others' sealed shares; the masked vector beside it
    SurvivorsRequest        SurvivorsReply      who failed; a signature of just that
    UnmaskRequest           UnmaskReply         enough signatures; shares, and the next KeyOffer

A message is an array in MessagePack: `encode` writes it, and `decode` checks every field's type,
length and range. What a message *means*, whether it may be believed and whether it comes in time,
is for the client and the server to judge. A device goes by its index in the roster, which is
sorted by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec
from msgspec import Meta

from fedspk.errors import FedspkError
from fedspk.secagg.errors import MessageError
from fedspk.secagg.keys import KEY_BYTES, SEAL_BYTES, SIGNATURE_BYTES
from fedspk.secagg.parameters import fewest_survivors
from fedspk.secagg.privacy import noise_margin
from fedspk.secagg.quantise import Quantiser
from fedspk.secagg.shamir import SHARE_BYTES

PROTOCOL_VERSION: Literal[1] = 1
MAXIMUM_COHORT = 10_000
PROOF_BYTES = 16
BOX_BYTES = 2 * SHARE_BYTES + SEAL_BYTES

_MAXIMUM_BYTES = 1 << 22  # the roster of the largest cohort takes 2.6 MB
LARGEST_NUMBER = 2**31 - 1

Purpose = Literal["train", "evaluate"]

_Index = Annotated[int, Meta(ge=0, lt=MAXIMUM_COHORT)]
_Number = Annotated[int, Meta(ge=0, le=LARGEST_NUMBER)]
_Count = Annotated[int, Meta(ge=1, le=LARGEST_NUMBER)]
_Run = Annotated[str, Meta(pattern=r"\A[0-9a-f]{1,64}\Z")]
_Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Device = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._-]{1,64}\Z")]
_Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
_BoxBytes = Annotated[bytes, Meta(min_length=BOX_BYTES, max_length=BOX_BYTES)]
_ShareBytes = Annotated[bytes, Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
_ProofBytes = Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]

_Item = TypeVar("_Item")
_PerDevice = Annotated[tuple[_Item, ...], Meta(max_length=MAXIMUM_COHORT)]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A piece of a message: an array in MessagePack, without room for anything more."""


class Message(Part, frozen=True, tag=True):
    """A whole message; its array begins with the name of its kind."""

    def encode(self) -> bytes:
        """Return the bytes that `decode` reads."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what `encode` wrote.

        Raises:
            MessageError: the bytes are too many, or not a message of this kind.
        """
        if len(data) > _MAXIMUM_BYTES:
            raise MessageError(f"a {cls.__name__} of {len(data)} bytes is too long.")
        try:
            message: Self = _decoder(cls).decode(data)
            return message
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise MessageError(f"a {cls.__name__} is malformed ({error}).") from error


@cache
def _decoder(kind: type[Message]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


class OfferRequest(Message, frozen=True):
    """Offer keys for one sum, which these fields name.

    run: drawn afresh by the aggregator at every start, in hex.
    attempt: counts the cohorts that one round's sum is tried with.
    """

    version: Literal[1]
    run: _Run
    purpose: Purpose
    round: _Number
    attempt: _Number


class KeyOffer(Message, frozen=True):
    """A device's keys for one sum.

    sealing_key, masking_key: public X25519 keys, of sealed shares and of pairwise masks.
    seed_commitment: SHA-256 of the seed of the device's own mask.
    signature: Ed25519, of `offer_statement`.
    """

    device: _Device
    sealing_key: _Key
    masking_key: _Key
    seed_commitment: _Key
    signature: _Signature


class Terms(Message, frozen=True, kw_only=True):
    """All that the devices of one sum must agree on.

    cohort: a number that tells apart the sums of one round.
    model, config: SHA-256 of what is trained and of the run's configuration, in hex.
    size, counters, precision_bits, modulus_bits, norm, maximum_weight, clients: see `Quantiser`.
    noise_scale: of the noise that each device adds, in integer steps; 0 adds none.
    degree, threshold: neighbours of a device (clients - 1: the full graph), and the shares that
        recover a secret.

    Raises:
        ValueError: a norm or a scale is not a finite number.
    """

    version: Literal[1]
    run: _Run
    purpose: Purpose
    round: _Number
    attempt: _Number
    cohort: _Number
    model: _Digest
    config: _Digest
    size: _Number
    counters: Annotated[int, Meta(ge=0, le=64)]
    precision_bits: Annotated[int, Meta(ge=1, le=32)]
    modulus_bits: Literal[16, 32]
    norm: float
    maximum_weight: _Count
    noise_scale: float
    clients: Annotated[int, Meta(ge=1, le=MAXIMUM_COHORT)]
    degree: _Index
    threshold: Annotated[int, Meta(ge=1, le=MAXIMUM_COHORT)]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.norm) and math.isfinite(self.noise_scale)):
            raise ValueError("the norm and the noise scale must be finite")
        for name in ("norm", "noise_scale"):  # an integer would be hashed as one
            msgspec.structs.force_setattr(self, name, float(getattr(self, name)))

    @property
    def instance(self) -> OfferRequest:
        """The sum that the offered keys were made for."""
        return OfferRequest(self.version, self.run, self.purpose, self.round, self.attempt)

    @property
    def quantiser(self) -> Quantiser:
        """How vectors are made, and summed without a wrap.

        Raises:
            FedspkError: a field is out of range, or a sum could wrap.
        """
        margin = 0
        if self.noise_scale != 0:
            if self.noise_scale < 0 or self.size < 1:
                raise FedspkError("noise must have a positive scale, and a vector to be added to.")
            margin = noise_margin(self.noise_scale, self.clients, self.size)
        return Quantiser(
            size=self.size,
            counters=self.counters,
            clients=self.clients,
            precision_bits=self.precision_bits,
            modulus_bits=self.modulus_bits,
            norm=self.norm,
            maximum_weight=self.maximum_weight,
            noise_margin=margin,
        )

    @property
    def fewest_survivors(self) -> int:
        """How many devices must upload before anybody helps to unmask."""
        return fewest_survivors(self.clients, self.degree, self.threshold)


class ShareRequest(Message, frozen=True):
    """Share your secrets among this cohort: its key offers, sorted by device."""

    terms: Terms
    roster: _PerDevice[KeyOffer]


class Box(Part, frozen=True, gc=False):
    """Sealed shares, to the device of this index or from it."""

    index: _Index
    box: _BoxBytes


class SharesReply(Message, frozen=True):
    """One box for each neighbour."""

    boxes: _PerDevice[Box]


class UploadRequest(Message, frozen=True):
    """Upload your masked vector; these neighbours have shared their secrets with you."""

    context: _Key
    boxes: _PerDevice[Box]


class Proof(Part, frozen=True, gc=False):
    """That the vector of one neighbour carries the mask it has in common with another.

    The index is the receiver's on the way to the aggregator and the sender's on the way from it.
    Only the two neighbours can make it: without it, an aggregator that delivered a box in one
    direction only could have a device help to unmask a neighbour it is not tied to.
    """

    index: _Index
    proof: _ProofBytes


class UploadReply(Message, frozen=True):
    """What goes with a masked vector: a proof for every neighbour whose mask is in it."""

    proofs: _PerDevice[Proof]


class SurvivorsRequest(Message, frozen=True):
    """Sign who failed to upload, in ascending order. Everybody else is alive."""

    context: _Key
    dead: _PerDevice[_Index]


class SurvivorsReply(Message, frozen=True):
    """A signature of `survivors_statement`."""

    signature: _Signature


class Signed(Part, frozen=True, gc=False):
    """The signature of one of a device's neighbours under the survivors."""

    index: _Index
    signature: _Signature


class UnmaskRequest(Message, frozen=True):
    """Give your shares: seeds of those alive, masking keys of those who failed.

    signatures: of neighbours, under the very survivors that the device has signed.
    proofs: of neighbours that are alive.
    next: the sum for which to offer keys in the same answer.
    """

    context: _Key
    signatures: _PerDevice[Signed]
    proofs: _PerDevice[Proof]
    next: OfferRequest | None = None


class Share(Part, frozen=True, gc=False):
    """A share of a secret of the device of this index."""

    index: _Index
    share: _ShareBytes


class UnmaskReply(Message, frozen=True):
    """Shares of seeds of those alive and of masking keys of those who failed, never of both."""

    seed_shares: _PerDevice[Share]
    key_shares: _PerDevice[Share]
    offer: KeyOffer | None = None


def offer_statement(request: OfferRequest, offer: KeyOffer) -> bytes:
    """Return what a device signs in its offer: the sum, its name and its keys."""
    keys = (offer.sealing_key, offer.masking_key, offer.seed_commitment)
    return b"fedspk/1 offer" + msgspec.msgpack.encode((request, offer.device, *keys))


def survivors_statement(context: bytes, dead: tuple[int, ...]) -> bytes:
    """Return what a device signs of the survivors: the sum and who failed."""
    return b"fedspk/1 survivors" + msgspec.msgpack.encode((context, dead))


def sum_context(terms: Terms, roster: tuple[KeyOffer, ...]) -> bytes:
    """Return 32 bytes that name a sum with all its terms, devices and keys."""
    return sha256(b"fedspk/1 context" + msgspec.msgpack.encode((terms, roster))).digest()


def strictly_increasing(values: Iterable[int] | Iterable[str]) -> bool:
    """Whether each value is larger than the one before it: sorted, and none twice."""
    return all(before < after for before, after in pairwise(values))  # type: ignore[operator]
