"""The aggregator's side of a secure sum: one running total, and shares that unmask only it.

    server = SumServer(terms, offers, register)
    request = server.share_request()                       # to every device
    server.receive_shares(device, reply)                   # ... from those that answer
    for device, request in server.close_sharing().items():
        server.receive_vector(device, reply, data)         # added as it comes, then forgotten
    request = server.close_uploads()                       # to every survivor
    server.receive_signature(device, reply)
    for device, request in server.close_signatures().items():
        server.receive_unmask(device, reply)
    total = server.finish()                                # the exact sum over `survivors`

A reply that is malformed, comes twice or out of time raises `MessageError` and changes nothing: its
sender has failed at that stage. A device may fail at any stage; whoever has uploaded is in the sum.
A `close_...` raises `SumAborted` as soon as a secret that the sum needs cannot be recovered.

Protocol: Bonawitz et al. 2017, figure 4; Bell et al. 2020, algorithm 3. Memory: one vector, and per
device what its neighbours' messages weigh.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence, Set
from enum import IntEnum
from functools import partial
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.secagg.errors import MessageError, SumAborted
from fedspk.secagg.graph import Graph
from fedspk.secagg.keys import KEY_BYTES, AgreementKey, DeviceRegister, check_public_key
from fedspk.secagg.masks import MaskedVector
from fedspk.secagg.messages import (
    Box,
    KeyOffer,
    OfferRequest,
    Proof,
    Share,
    ShareRequest,
    SharesReply,
    Signed,
    SurvivorsReply,
    SurvivorsRequest,
    Terms,
    UnmaskReply,
    UnmaskRequest,
    UploadReply,
    UploadRequest,
    offer_statement,
    strictly_increasing,
    sum_context,
    survivors_statement,
)
from fedspk.secagg.parameters import most_corrupt
from fedspk.secagg.recovery import SharedSecret, recover
from fedspk.secagg.unmask import Failed, MaskRemover, Survived


def check_offer(offer: KeyOffer, request: OfferRequest, register: DeviceRegister) -> None:
    """Accept an offer that is signed for the sum and whose keys other devices will accept.

    Raises:
        MessageError: the device is unknown, the signature is not its own, or a key is degenerate.
    """
    register.verify(offer.device, offer_statement(request, offer), offer.signature)
    for key in (offer.sealing_key, offer.masking_key):
        check_public_key(key)


def without_copies(offers: Iterable[KeyOffer]) -> list[KeyOffer]:
    """Return, sorted by device, the offers that share neither a name nor a key with another."""
    ordered = sorted(offers, key=lambda offer: offer.device)
    uses = Counter(part for offer in ordered for part in _unique_parts(offer))
    return [offer for offer in ordered if all(uses[part] == 1 for part in _unique_parts(offer))]


class _Stage(IntEnum):
    SHARING = 0
    UPLOADING = 1
    SIGNING = 2
    UNMASKING = 3
    FINISHED = 4


class SumServer:
    """One secure sum over one cohort; see the module for the order of calls.

    Args:
        terms: with `clients` = the number of offers.
        offers: of the cohort's devices, in any order, each accepted by `check_offer`.
        register: of the devices' public keys.
        corrupt_fraction: share of a device's holders that may lie before the device is blamed, but
            one in any case.

    Raises:
        MessageError: two offers have a name or a key in common; see `without_copies`.
        FedspkError: the terms do not fit the cohort or do not hold a sum.
    """

    def __init__(
        self,
        terms: Terms,
        offers: Sequence[KeyOffer],
        register: DeviceRegister,
        corrupt_fraction: float = 0.1,
    ) -> None:
        self._terms = terms
        self._roster: tuple[KeyOffer, ...] = tuple(sorted(offers, key=lambda offer: offer.device))
        self._register = register
        self._corrupt_fraction = corrupt_fraction
        if len(self._roster) != terms.clients:
            raise FedspkError(f"Terms for {terms.clients} devices do not fit {len(offers)} offers.")
        if len(without_copies(offers)) != len(offers):
            raise MessageError("two offers of the cohort have a name or a key in common.")
        quantiser = terms.quantiser
        self._context = sum_context(terms, self._roster)
        self._graph = Graph(terms.clients, terms.degree, self._context)
        self._index = {offer.device: index for index, offer in enumerate(self._roster)}
        self._stage = _Stage.SHARING
        self._total: MaskedVector = np.zeros(quantiser.length, quantiser.dtype)
        self._sharers: set[int] = set()
        self._boxes: list[list[Box]] = [[] for _ in self._roster]
        self._alive: set[int] = set()
        self._proofs: list[list[Proof]] = [[] for _ in self._roster]
        self._dead: tuple[int, ...] = ()
        self._signatures: dict[int, bytes] = {}
        self._asked: set[int] = set()
        self._answered: set[int] = set()
        self._secrets: dict[int, SharedSecret] = {}

    @property
    def terms(self) -> Terms:
        """What the devices agree on."""
        return self._terms

    @property
    def devices(self) -> tuple[str, ...]:
        """The cohort, sorted."""
        return tuple(offer.device for offer in self._roster)

    @property
    def survivors(self) -> tuple[str, ...]:
        """The devices whose vectors are in the sum, sorted."""
        return tuple(self._roster[index].device for index in sorted(self._alive))

    def share_request(self) -> ShareRequest:
        """Return what goes to every device of the cohort."""
        return ShareRequest(self._terms, self._roster)

    def receive_shares(self, device: str, reply: SharesReply) -> None:
        """Take a device's sealed shares.

        Raises:
            MessageError: they are not one for each neighbour, or come twice or late.
        """
        index = self._sender(device, _Stage.SHARING, self._sharers, range(self._terms.clients))
        if tuple(box.index for box in reply.boxes) != self._graph.neighbours(index):
            raise MessageError(f"device {device} did not share with just its neighbours.")
        self._sharers.add(index)
        for box in reply.boxes:
            self._boxes[box.index].append(Box(index, box.box))

    def close_sharing(self) -> dict[str, UploadRequest]:
        """Return what goes to each device that has shared: its neighbours' sealed shares.

        Raises:
            SumAborted: too few have shared for a sum, or with one of them.
        """
        self._advance(_Stage.SHARING)
        self._require_enough(self._sharers)
        for index in self._sharers:
            self._require_holders(index, self._sharers)
        requests = {
            self._roster[index].device: UploadRequest(self._context, tuple(self._boxes[index]))
            for index in sorted(self._sharers)
        }
        self._boxes.clear()
        return requests

    def receive_vector(
        self, device: str, reply: UploadReply, data: bytes | memoryview | npt.NDArray[np.generic]
    ) -> None:
        """Add a masked vector to the sum.

        Args:
            device: its sender.
            reply: what came beside it.
            data: (length,) integers of the quantiser's type, or their little-endian bytes.

        Raises:
            MessageError: the vector has another length or type, comes twice or late, its sender has
                not shared, or the proofs are not one for each neighbour that has shared.
        """
        index = self._sender(device, _Stage.UPLOADING, self._alive, self._sharers)
        masked = self._sharers.intersection(self._graph.neighbours(index))
        if [proof.index for proof in reply.proofs] != sorted(masked):
            raise MessageError(f"device {device} did not mask with just those that have shared.")
        vector = _as_vector(data, self._total)
        np.add(self._total, vector, out=self._total)
        self._alive.add(index)
        for proof in reply.proofs:
            self._proofs[proof.index].append(Proof(index, proof.proof))

    def close_uploads(self) -> SurvivorsRequest:
        """Return what goes to every survivor: the devices that are not in the sum.

        Raises:
            SumAborted: too few have uploaded, or too few holders of a secret that the sum needs.
        """
        self._advance(_Stage.UPLOADING)
        self._dead = tuple(i for i in range(self._terms.clients) if i not in self._alive)
        self._require_enough(self._alive)
        self._require_secrets(self._alive)
        return SurvivorsRequest(self._context, self._dead)

    def receive_signature(self, device: str, reply: SurvivorsReply) -> None:
        """Take a survivor's signature.

        Raises:
            MessageError: it does not verify, comes twice or late, or its sender is not a survivor.
        """
        index = self._sender(device, _Stage.SIGNING, self._signatures, self._alive)
        statement = survivors_statement(self._context, self._dead)
        self._register.verify(device, statement, reply.signature)
        self._signatures[index] = reply.signature

    def close_signatures(self) -> dict[str, UnmaskRequest]:
        """Return what goes to each device that can be convinced; `next` is the caller's to set.

        Raises:
            SumAborted: the devices that can be are too few to recover a secret that the sum needs.
        """
        self._advance(_Stage.SIGNING)
        requests = {}
        for index in sorted(self._signatures):
            needed = self._terms.threshold - int(self._graph.is_full)
            signers = [i for i in self._graph.neighbours(index) if i in self._signatures][:needed]
            if len(signers) == needed:
                requests[self._roster[index].device] = UnmaskRequest(
                    self._context,
                    tuple(Signed(i, self._signatures[i]) for i in signers),
                    tuple(self._proofs[index]),
                )
                self._asked.add(index)
        self._require_secrets(self._asked)
        for index in (*self._alive, *self._failed()):
            offer = self._roster[index]
            accepts = partial(_is_seed if index in self._alive else _is_key, offer)
            self._secrets[index] = SharedSecret(offer.device, self._graph.holders(index), accepts)
        return requests

    def receive_unmask(self, device: str, reply: UnmaskReply) -> None:
        """Take a device's shares.

        Raises:
            MessageError: they are not of the right kind each, come twice or late, or their sender
                was not asked.
        """
        index = self._sender(device, _Stage.UNMASKING, self._answered, self._asked)
        holders = self._sharers.intersection(self._graph.holders(index))
        _check_shares(device, reply.seed_shares, holders & self._alive)
        _check_shares(device, reply.key_shares, holders - self._alive)
        self._answered.add(index)
        for share in (*reply.seed_shares, *reply.key_shares):
            self._secrets[share.index].shares[index] = share.share

    def finish(self, remover: MaskRemover | None = None) -> MaskedVector:
        """Remove the masks and return the sum of the survivors' vectors, exact modulo 2^bits.

        Args:
            remover: shares the work among processes; None does it here.

        Raises:
            SumAborted: a secret that the sum needs cannot be recovered; suspects have dealt wrong
                shares.
        """
        self._advance(_Stage.UNMASKING)
        survived, failed = self._recover()
        (remover or MaskRemover()).remove(self._total, self._context, survived, failed)
        return self._total

    def _recover(self) -> tuple[list[Survived], list[Failed]]:
        """Return the survivors with their seeds, and the failed with their masking keys."""
        alive, failed = sorted(self._alive), self._failed()
        values = recover(
            [self._secrets[index] for index in (*alive, *failed)],
            self._terms.threshold,
            answered=self._answered,
            corrupt=self._most_liars(),
        )
        seeds, keys = values[: len(alive)], values[len(alive) :]
        return (
            [Survived(index, seed) for index, seed in zip(alive, seeds, strict=True)],
            [
                Failed(
                    index,
                    key,
                    tuple(
                        (other, self._roster[other].masking_key)
                        for other in self._graph.neighbours(index)
                        if other in self._alive
                    ),
                )
                for index, key in zip(failed, keys, strict=True)
            ],
        )

    def _most_liars(self) -> int:
        """Return how many holders of one secret may lie before its owner is blamed."""
        terms = self._terms
        return max(1, most_corrupt(terms.clients, terms.degree, self._corrupt_fraction))

    def _sender(
        self,
        device: str,
        stage: _Stage,
        done: Collection[int],
        allowed: Collection[int] | None = None,
    ) -> int:
        """Return the index of a device whose reply is due at this stage."""
        index = self._index.get(device)
        if index is None or (allowed is not None and index not in allowed):
            raise MessageError(f"device {device[:80]!r} was not asked at this stage of the sum.")
        if self._stage != stage or index in done:
            raise MessageError(f"a reply of device {device} came twice or out of time.")
        return index

    def _advance(self, stage: _Stage) -> None:
        if self._stage != stage:
            raise FedspkError(f"The sum is not at the stage {stage.name.lower()}; call in order.")
        self._stage = _Stage(stage + 1)

    def _failed(self) -> list[int]:
        """Return the dead whose masks are in the survivors' vectors."""
        return [
            index
            for index in self._dead
            if index in self._sharers and not self._alive.isdisjoint(self._graph.neighbours(index))
        ]

    def _require_enough(self, devices: Collection[int]) -> None:
        fewest = self._terms.fewest_survivors
        if len(devices) < fewest:
            raise SumAborted(
                f"Only {len(devices)} of {self._terms.clients} devices are left in the secure sum "
                f"and it needs {fewest}."
            )

    def _require_holders(self, index: int, devices: set[int]) -> None:
        left = len(devices.intersection(self._graph.holders(index)))
        if left < self._terms.threshold:
            raise SumAborted(
                f"Only {left} devices that hold shares of device {self._roster[index].device} are "
                f"left in the secure sum and it needs {self._terms.threshold}."
            )

    def _require_secrets(self, devices: set[int]) -> None:
        """Check that these devices hold enough shares of every secret that the sum needs."""
        for index in (*self._alive, *self._failed()):
            self._require_holders(index, devices)


def _is_seed(offer: KeyOffer, value: bytes) -> bool:
    return sha256(value).digest() == offer.seed_commitment


def _is_key(offer: KeyOffer, value: bytes) -> bool:
    return len(value) == KEY_BYTES and AgreementKey(value).public == offer.masking_key


def _unique_parts(offer: KeyOffer) -> tuple[str | bytes, ...]:
    return offer.device, offer.sealing_key, offer.masking_key, offer.seed_commitment


def _as_vector(
    data: bytes | memoryview | npt.NDArray[np.generic], like: MaskedVector
) -> npt.NDArray[np.generic]:
    if not isinstance(data, np.ndarray):
        if len(data) != like.nbytes:
            raise MessageError(f"a masked vector has {len(data)} bytes and not {like.nbytes}.")
        data = np.frombuffer(data, like.dtype.newbyteorder("<"))
    if data.shape != like.shape or data.dtype != like.dtype:
        raise MessageError("a masked vector has another length or type than the terms say.")
    return data


def _check_shares(device: str, shares: Sequence[Share], allowed: Set[int]) -> None:
    indices = [share.index for share in shares]
    if not strictly_increasing(indices) or not allowed >= set(indices):
        raise MessageError(f"device {device} gave shares that it was not asked for.")
