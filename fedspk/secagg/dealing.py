"""A device's secrets in a sum: made with an offer, dealt to its neighbours, given for the others.

No rules here: who may be dealt to and what may be given is for the client to judge.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest

from msgspec.structs import replace

from fedspk.secagg.device_state import ActiveSum, Neighbour, Offered, Stage
from fedspk.secagg.errors import MessageError
from fedspk.secagg.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    AgreementKey,
    Identity,
    derive_key,
    seal,
    unseal,
)
from fedspk.secagg.masks import common_mask, own_mask
from fedspk.secagg.messages import (
    PROOF_BYTES,
    Box,
    KeyOffer,
    OfferRequest,
    Proof,
    Share,
    ShareRequest,
    offer_statement,
)
from fedspk.secagg.shamir import SHARE_BYTES, split


def make_offer(identity: Identity, request: OfferRequest) -> Offered:
    """Return fresh keys for a sum, with the signed offer of their public halves."""
    sealing, masking = AgreementKey.generate(), AgreementKey.generate()
    seed = os.urandom(KEY_BYTES)
    offer = KeyOffer(
        device=identity.device,
        sealing_key=sealing.public,
        masking_key=masking.public,
        seed_commitment=sha256(seed).digest(),
        signature=bytes(SIGNATURE_BYTES),
    )
    offer = replace(offer, signature=identity.sign(offer_statement(request, offer)))
    return Offered(request, offer, sealing.private, masking.private, seed)


def deal(
    request: ShareRequest, context: bytes, index: int, holders: Sequence[int], offered: Offered
) -> tuple[ActiveSum, list[Box]]:
    """Return what a device remembers of a sum, and a box for each of its neighbours.

    Args:
        request: the terms and the roster.
        context: of the sum.
        index: the device's own.
        holders: of shares of its secrets, itself included in the full graph.
        offered: its secrets.

    Raises:
        MessageError: a neighbour's key is degenerate.
    """
    terms, roster = request.terms, request.roster
    sealing, masking = AgreementKey(offered.sealing_key), AgreementKey(offered.masking_key)
    secrets = (offered.masking_key, offered.seed)
    key_shares, seed_shares = split(secrets, len(holders), terms.threshold)
    own_share, neighbours, boxes = None, [], []
    for holder, key_share, seed_share in zip(holders, key_shares, seed_shares, strict=True):
        if holder == index:
            own_share = seed_share
            continue
        sealed = sealing.agree(roster[holder].sealing_key)
        masked = masking.agree(roster[holder].masking_key)
        key = derive_key(sealed, context, "share", index, holder)
        box = seal(key, key_share + seed_share, _associated(context, index, holder))
        boxes.append(Box(holder, box))
        our_proof, their_proof = _proofs(sealed, context, index, holder)
        neighbours.append(
            Neighbour(
                index=holder,
                device=roster[holder].device,
                opening_key=derive_key(sealed, context, "share", holder, index),
                mask=common_mask(masked, context, index, holder),
                our_proof=our_proof,
                their_proof=their_proof,
            )
        )
    mask = own_mask(offered.seed, context, index)
    active = ActiveSum(terms, context, index, Stage.SHARED, tuple(neighbours), mask, own_share)
    return active, boxes


def give_shares(active: ActiveSum, proofs: Sequence[Proof]) -> tuple[list[Share], list[Share]]:
    """Return shares of the seeds of those alive, and of the masking keys of those dead.

    None of a device whose box does not open, or that is alive and does not prove to have masked
    with this one.
    """
    dead = frozenset(active.dead)
    proved = {proof.index: proof.proof for proof in proofs}
    seed_shares, key_shares = [], []
    if active.own_share is not None:
        seed_shares.append(Share(active.index, active.own_share))
    for peer in active.neighbours:
        is_dead = peer.index in dead
        if not is_dead and not compare_digest(proved.get(peer.index, b""), peer.their_proof):
            continue
        if opened := _open(active, peer):
            if is_dead:
                key_shares.append(Share(peer.index, opened[:SHARE_BYTES]))
            else:
                seed_shares.append(Share(peer.index, opened[SHARE_BYTES:]))
    return sorted(seed_shares, key=lambda share: share.index), key_shares


def _open(active: ActiveSum, peer: Neighbour) -> bytes:
    """Return the key share and the seed share in a neighbour's box, or nothing."""
    if peer.box is None:
        return b""
    try:
        associated = _associated(active.context, peer.index, active.index)
        return unseal(peer.opening_key, peer.box, associated)
    except MessageError:
        return b""


def _proofs(secret: bytes, context: bytes, index: int, other: int) -> tuple[bytes, bytes]:
    """Return our and their proof that a vector carries the common mask; see `Proof`."""
    both = derive_key(secret, context, "proof", min(index, other), max(index, other))
    lower, higher = both[:PROOF_BYTES], both[PROOF_BYTES:]
    return (lower, higher) if index < other else (higher, lower)


def _associated(context: bytes, sender: int, recipient: int) -> bytes:
    return context + struct.pack(">II", sender, recipient)
