"""A device's side of a secure sum: it trusts no aggregator and enforces the rules by itself.

1. Keys are fresh for every sum and used for one. Within a run no sum comes again once keys were
   offered for it, nor an earlier one, nor another attempt at a round that was unmasked. Steps come
   in order, each is answered once.
2. The sum is the one the device means: its run, purpose, round and attempt, as it signed them; its
   model and configuration, as the caller knows them.
3. The cohort is as large as the policy asks, sorted, without twins of name or key, of registered
   devices only; the device's own offer is in it as it was sent; every neighbour's is signed for
   this very sum.
4. Threshold and degree are safe against the policy's share of corrupt devices; no sum can wrap; an
   update is summed under as much noise as the policy asks.
5. Shares of at least a threshold of neighbours arrived before the device masks; a neighbour that is
   said to be alive is one of those.
6. The aggregator names the dead and the device derives who is alive: never itself dead, nobody
   twice, enough alive for the threshold and for the policy's smallest cohort. It gives a seed's
   share of the alive and a key's share of the dead, so never both of anybody.
7. It gives shares only after a threshold of its neighbours has signed the same dead, and a seed's
   share only of a neighbour that proves to have masked with it.
8. Then it forgets everything secret of the sum.

What came in is checked before anything changes; a refused message leaves the device as it was. The
caller must have `state()` on disk before it sends a reply, and must never go back to older bytes.

What no rule prevents: of each purpose the device remembers one run, the last that it was asked for.
An aggregator that names a new run, or changes the model a little and goes on to the next round, can
ask for the same training again among almost the same devices; the two sums differ by the update of
the device that was left out. Only noise hides that (see docs/threat-model.md).

Protocol: Bonawitz et al. 2017, figure 4 (the active adversary); Bell et al. 2020, algorithm 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from msgspec.structs import replace

from fedspk.errors import FedspkError
from fedspk.secagg.dealing import deal, give_shares, make_offer
from fedspk.secagg.device_state import ActiveSum, DeviceState, Stage
from fedspk.secagg.errors import MessageError, SumRefused
from fedspk.secagg.graph import Graph
from fedspk.secagg.keys import DeviceRegister, Identity
from fedspk.secagg.masks import MaskedVector, add_masks
from fedspk.secagg.messages import (
    LARGEST_NUMBER,
    Box,
    KeyOffer,
    OfferRequest,
    Proof,
    ShareRequest,
    SharesReply,
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
from fedspk.secagg.parameters import is_safe
from fedspk.secagg.privacy import honest_shares, share_scale


@dataclass(frozen=True)
class DevicePolicy:
    """What a device asks of every sum, whatever the aggregator says.

    minimum_cohort: fewest devices of a cohort, and of those of it that remain in the sum.
    corrupt_fraction: share of a cohort that may be in league with the aggregator.
    minimum_noise: least noise in a sum of updates when only the fewest devices remain and the
        corrupt ones add none, as a multiple of the sum's L2 sensitivity; 0 asks for none. Sums of
        figures alone, such as validation losses, carry no noise and are not held to it.

    Raises:
        FedspkError: no sum can be safe under such a policy.
    """

    minimum_cohort: int = 5
    corrupt_fraction: float = 0.1
    minimum_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.minimum_cohort < 2 or not 0 <= self.corrupt_fraction < 1 / 3:
            raise FedspkError(
                "A device's policy needs a minimum cohort of 2 or more devices and a corrupt "
                "fraction below 1/3."
            )
        if not 0 <= self.minimum_noise < math.inf:
            raise FedspkError(
                f"A device's policy cannot ask for noise of {self.minimum_noise} times the "
                "sensitivity; give a number that is not negative."
            )


class SumClient:
    """One device in secure sums, one after the other.

    Args:
        identity: what the device signs with.
        register: the devices it accepts as peers.
        policy: what it asks of a cohort.
        state: what `state()` gave, or nothing at the very first.

    Raises:
        FedspkError: the state is damaged or another device's; without it the device starts afresh.
    """

    def __init__(
        self,
        identity: Identity,
        register: DeviceRegister,
        policy: DevicePolicy,
        state: bytes = b"",
    ) -> None:
        self._identity = identity
        self._register = register
        self._policy = policy
        self._state = DeviceState.decode(state) if state else DeviceState(identity.device)
        if self._state.device != identity.device:
            raise FedspkError(
                f"The state of secure sums is device {self._state.device}'s and not "
                f"{identity.device}'s; every device needs a state of its own."
            )

    def state(self) -> bytes:
        """Return what must be on disk before a reply leaves. It holds secrets."""
        return self._state.encode()

    @property
    def terms(self) -> Terms | None:
        """The terms of the sum under way."""
        return self._state.active.terms if self._state.active else None

    def offer(self, request: OfferRequest) -> KeyOffer:
        """Offer fresh keys for a sum; they replace unused ones of the same purpose.

        The same request again gets the same offer, until a sum has used it.

        Raises:
            SumRefused: keys were offered for this sum, or a later one of its run, before.
        """
        self._state, offer = self._with_offer(self._state, request)
        return offer

    def share(self, request: ShareRequest, *, model: str, config: str) -> SharesReply:
        """Join a cohort: share the secrets behind the offered keys among the neighbours.

        Gives up any earlier sum. The terms that a device knows from elsewhere, such as the norm,
        are the caller's to compare.

        Args:
            request: the terms and the cohort.
            model: SHA-256 of the model that the caller would train, in hex.
            config: SHA-256 of the run's configuration, in hex.

        Raises:
            SumRefused: rule 1, 2, 3 or 4 is broken.
        """
        terms, roster = request.terms, request.roster
        offered = self._state.offered.get(terms.purpose)
        if offered is None or offered.request != terms.instance:
            raise SumRefused("This device has no unused keys on offer for this sum.")
        if (terms.model, terms.config) != (model, config):
            raise SumRefused("The sum is over another model or configuration than this device's.")
        self._check_terms(terms)
        index = self._find_in(roster, terms, offered.offer)
        context = sum_context(terms, roster)
        graph = Graph(terms.clients, terms.degree, context)
        self._check_signed(request, graph.neighbours(index))
        try:
            active, boxes = deal(request, context, index, graph.holders(index), offered)
        except MessageError as error:
            raise SumRefused(f"The roster has keys of no use: {error}") from error
        unused = {purpose: o for purpose, o in self._state.offered.items() if o is not offered}
        self._state = replace(self._state, offered=unused, active=active)
        return SharesReply(tuple(boxes))

    def check_upload(self, request: UploadRequest) -> None:
        """Refuse what `mask` would refuse, before a vector is computed for it.

        Raises:
            SumRefused: rule 1 or 5 is broken.
        """
        self._check_boxes(self._expect(Stage.SHARED, request.context), request.boxes)

    def mask(self, request: UploadRequest, values: MaskedVector) -> UploadReply:
        """Mask the quantised vector in place; it goes to the aggregator beside the reply.

        y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)
        (Bonawitz et al. 2017, figure 4, round 2).

        Args:
            request: the sealed shares of the neighbours.
            values: (length,) uint16 or uint32 as the terms' quantiser says.

        Raises:
            SumRefused: rule 1 or 5 is broken.
            FedspkError: the vector does not fit the terms.
        """
        active = self._expect(Stage.SHARED, request.context)
        boxes = self._check_boxes(active, request.boxes)
        _check_vector(values, active.terms)
        sharing = [peer for peer in active.neighbours if peer.index in boxes]
        masks = [active.mask, *(peer.mask for peer in sharing)]
        # From here on the vector counts as masked: a second one under these masks must never leave.
        self._state = replace(self._state, active=active.after_masking(boxes))
        add_masks(values, [mask for mask in masks if mask is not None])
        return UploadReply(tuple(Proof(peer.index, peer.our_proof) for peer in sharing))

    def sign_survivors(self, request: SurvivorsRequest) -> SurvivorsReply:
        """Sign who failed to upload.

        Raises:
            SumRefused: rule 1, 5 or 6 is broken.
        """
        active = self._expect(Stage.MASKED, request.context)
        dead, terms = frozenset(request.dead), active.terms
        if not strictly_increasing(request.dead) or any(i >= terms.clients for i in dead):
            _refuse("The list of the dead is not ascending or names a device out of range")
        if active.index in dead:
            _refuse("The list of the dead names this device")
        survivors = terms.clients - len(dead)
        if survivors < terms.fewest_survivors:
            _refuse(f"Fewer than {terms.fewest_survivors} of {terms.clients} devices are alive")
        if survivors < self._policy.minimum_cohort:
            _refuse(f"A sum over {survivors} is smaller than {self._policy.minimum_cohort}")
        alive = [peer for peer in active.neighbours if peer.index not in dead]
        if any(peer.box is None for peer in alive):
            _refuse("A neighbour that did not share its secrets with this device is called alive")
        if len(alive) + _own_voice(active) < terms.threshold:
            _refuse(f"Fewer than {terms.threshold} holders of this device's shares are alive")
        signature = self._identity.sign(survivors_statement(active.context, request.dead))
        signed = replace(active, stage=Stage.SIGNED, dead=request.dead)
        self._state = replace(self._state, active=signed)
        return SurvivorsReply(signature)

    def unmask(self, request: UnmaskRequest) -> UnmaskReply:
        """Give the shares that unmask the sum, and forget it; offer keys for the next, if asked.

        A box that does not open, or a proof that is missing or wrong, costs only that share.

        Raises:
            SumRefused: rule 1 or 7 is broken.
        """
        active = self._expect(Stage.SIGNED, request.context)
        self._check_signatures(active, request)
        state, offer = _closed(self._state, active.terms.instance), None
        if request.next is not None:
            state, offer = self._with_offer(state, request.next)
        seed_shares, key_shares = give_shares(active, request.proofs)
        self._state = state
        return UnmaskReply(tuple(seed_shares), tuple(key_shares), offer)

    def _with_offer(
        self, state: DeviceState, request: OfferRequest
    ) -> tuple[DeviceState, KeyOffer]:
        """Return an offer and the state that remembers its secrets."""
        offered = state.offered.get(request.purpose)
        if offered is not None and offered.request == request:
            return state, offered.offer
        latest = state.latest.get(request.purpose)
        if latest is not None and _is_past(request, latest):
            raise SumRefused(
                "Keys for this sum, or for a later one of its run, were offered before."
            )
        fresh = make_offer(self._identity, request)
        state = replace(
            state,
            latest=state.latest | {request.purpose: request},
            offered=state.offered | {request.purpose: fresh},
        )
        return state, fresh.offer

    def _check_terms(self, terms: Terms) -> None:
        policy = self._policy
        if terms.clients < policy.minimum_cohort:
            _refuse(f"A cohort of {terms.clients} is smaller than {policy.minimum_cohort}")
        if not is_safe(terms.clients, terms.degree, terms.threshold, policy.corrupt_fraction):
            _refuse(
                f"Threshold {terms.threshold} and degree {terms.degree} are not safe for "
                f"{terms.clients} devices of which {policy.corrupt_fraction:.0%} may be corrupt"
            )
        try:
            quantiser = terms.quantiser
            honest = honest_shares(terms.clients, terms.fewest_survivors, policy.corrupt_fraction)
        except FedspkError as error:
            raise SumRefused(f"The terms do not hold a sum: {error}") from error
        if terms.size and terms.noise_scale < share_scale(policy.minimum_noise, quantiser, honest):
            _refuse(
                f"The noise may be less than {policy.minimum_noise:g} times the sensitivity of the "
                "sum"
            )

    def _find_in(self, roster: Sequence[KeyOffer], terms: Terms, own: KeyOffer) -> int:
        """Return this device's index in a roster that obeys the rules."""
        if len(roster) != terms.clients:
            _refuse("The roster is not as long as the terms say")
        if not strictly_increasing(offer.device for offer in roster):
            _refuse("The roster is not sorted or names a device twice")
        keys = {key for offer in roster for key in (offer.sealing_key, offer.masking_key)}
        if len(keys) != 2 * len(roster) or len({o.seed_commitment for o in roster}) != len(roster):
            _refuse("Two devices of the roster have a key in common")
        if any(offer.device not in self._register for offer in roster):
            _refuse("The roster names a device that is not in the register")
        if own not in roster:
            _refuse("This device's own offer is not in the roster as it was sent")
        return roster.index(own)

    def _check_signed(self, request: ShareRequest, devices: Sequence[int]) -> None:
        instance = request.terms.instance
        for index in devices:
            offer = request.roster[index]
            try:
                statement = offer_statement(instance, offer)
                self._register.verify(offer.device, statement, offer.signature)
            except MessageError as error:
                raise SumRefused(f"The roster has forged or old keys: {error}") from error

    def _expect(self, stage: Stage, context: bytes) -> ActiveSum:
        """Return the sum under way if it has come just so far."""
        active = self._state.active
        if active is None or active.context != context:
            raise SumRefused("This is not the sum that this device takes part in.")
        if active.stage != stage:
            raise SumRefused("This step of the sum was answered before, or comes too early.")
        return active

    def _check_boxes(self, active: ActiveSum, boxes: Sequence[Box]) -> dict[int, bytes]:
        """Return the sealed shares by sender."""
        by_sender = {box.index: box.box for box in boxes}
        if len(by_sender) != len(boxes) or not by_sender.keys() <= _indices(active):
            _refuse("Sealed shares came twice, or from a device that is not a neighbour")
        if len(by_sender) + _own_voice(active) < active.terms.threshold:
            _refuse(f"Fewer than {active.terms.threshold} neighbours have shared their secrets")
        return by_sender

    def _check_signatures(self, active: ActiveSum, request: UnmaskRequest) -> None:
        """Accept when a threshold of holders, distinct and alive, has signed the same dead."""
        signatures = request.signatures
        if not strictly_increasing(signed.index for signed in signatures):
            _refuse("A device's signature counts twice")
        if len(signatures) + _own_voice(active) < active.terms.threshold:
            _refuse(f"Fewer than {active.terms.threshold} neighbours have signed the survivors")
        statement = survivors_statement(active.context, active.dead)
        devices = {peer.index: peer.device for peer in active.neighbours}
        for signed in signatures:
            if signed.index not in devices or signed.index in active.dead:
                _refuse("The survivors are signed by a device that is dead or not a neighbour")
            try:
                self._register.verify(devices[signed.index], statement, signed.signature)
            except MessageError as error:
                raise SumRefused(f"The survivors are not what was signed: {error}") from error


def _closed(state: DeviceState, answered: OfferRequest) -> DeviceState:
    """Return the state in which a sum is over and its round does not come again in its run.

    Two sums of one round that differ by one device differ by that device's update.
    """
    purpose = answered.purpose
    last = replace(answered, attempt=LARGEST_NUMBER)
    latest = state.latest.get(purpose)
    if latest is None or latest.run != last.run or _is_past(latest, last):
        state = replace(state, latest=state.latest | {purpose: last})
    offered = {
        other: each
        for other, each in state.offered.items()
        if other != purpose or not _is_past(each.request, last)
    }
    return replace(state, active=None, offered=offered)


def _is_past(request: OfferRequest, latest: OfferRequest) -> bool:
    """Whether a sum is the latest one or comes before it in the same run."""
    asked, last = (request.round, request.attempt), (latest.round, latest.attempt)
    return request.run == latest.run and asked <= last


def _indices(active: ActiveSum) -> set[int]:
    return {peer.index for peer in active.neighbours}


def _own_voice(active: ActiveSum) -> int:
    """Return 1 where a device counts among the holders of its own shares, else 0."""
    return int(active.own_share is not None)


def _check_vector(values: MaskedVector, terms: Terms) -> None:
    quantiser = terms.quantiser
    if values.shape != (quantiser.length,) or values.dtype != quantiser.dtype:
        raise FedspkError(
            f"A vector of {values.size} {values.dtype} numbers is not the {quantiser.length} "
            f"{quantiser.dtype} that the sum's terms ask for."
        )


def _refuse(reason: str) -> NoReturn:
    raise SumRefused(f"{reason}; this device leaves the sum.")
