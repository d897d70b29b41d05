"""Every rule that a device enforces by itself, against an aggregator that breaks it.

Each test lets an honest sum come as far as the device's next step, shows it a bent request, and
checks that it refuses, and that the honest request still finds it as it was.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from secagg_simulator import CONFIG, MODEL, Simulation, make_request, make_terms

from fedspk.errors import FedspkError
from fedspk.secagg.client import DevicePolicy
from fedspk.secagg.errors import MessageError, SumAborted, SumRefused
from fedspk.secagg.graph import Graph
from fedspk.secagg.keys import AgreementKey, Identity
from fedspk.secagg.messages import (
    BOX_BYTES,
    MAXIMUM_COHORT,
    Box,
    KeyOffer,
    Proof,
    ShareRequest,
    Signed,
    SurvivorsRequest,
    UnmaskRequest,
    UploadRequest,
    offer_statement,
    sum_context,
    survivors_statement,
)

VICTIM = "device-002"
ME = 2
LOW_ORDER = bytes(32)


def simulate_to(stage: str, clients: int = 7, **fields: Any) -> Simulation:
    """Return a sum whose devices are about to be asked for this stage."""
    simulation = Simulation(clients, **fields)
    stages = ("offer", "share", "upload", "sign", "unmask")
    if stage != "offer":
        simulation.run_to(stages[stages.index(stage) - 1])
    simulation.ask(stage)
    return simulation


def honest(simulation: Simulation, stage: str) -> Any:
    return simulation.requests[stage][VICTIM]


def assert_refused(simulation: Simulation, stage: str, request: Any, because: str) -> None:
    """The device refuses the request, stays as it was, and accepts the honest one."""
    before = simulation.devices[VICTIM].state()
    with pytest.raises(SumRefused, match=because):
        simulation.deliver(stage, VICTIM, request)
    assert simulation.devices[VICTIM].state() == before
    simulation.deliver(stage, VICTIM, honest(simulation, stage))


# --- 1. keys are fresh for every sum, and steps come in order, once ---


def test_keys_of_a_sum_are_offered_once_and_used_once():
    simulation = simulate_to("upload")
    for attempt in range(2):
        with pytest.raises(SumRefused, match="offered before"):
            simulation.deliver("offer", VICTIM, simulation.request)
        with pytest.raises(SumRefused, match="no unused keys"):
            simulation.deliver("share", VICTIM, honest(simulation, "share"))
        if attempt == 0:
            simulation.answer("upload")


@pytest.mark.parametrize("changes", [{"round": 2}, {"round": 2, "attempt": 9}], ids=str)
def test_no_keys_are_offered_for_an_earlier_sum_of_the_run(changes):
    simulation = simulate_to("share")
    with pytest.raises(SumRefused, match="offered before"):
        simulation.deliver("offer", VICTIM, make_request(**changes))
    simulation.deliver("share", VICTIM, honest(simulation, "share"))


@pytest.mark.parametrize(
    "changes", [{"attempt": 1}, {"round": 4}, {"run": "ab"}, {"run": "ab", "round": 0}], ids=str
)
def test_every_sum_has_keys_of_its_own(changes):
    simulation = simulate_to("share")
    first = simulation.replies["offer"][VICTIM]
    second = simulation.deliver("offer", VICTIM, make_request(**changes))
    for field in ("sealing_key", "masking_key", "seed_commitment", "signature"):
        assert getattr(first, field) != getattr(second, field)
    with pytest.raises(SumRefused, match="no unused keys"):
        simulation.deliver("share", VICTIM, honest(simulation, "share"))


def test_a_repeated_request_gets_the_same_offer_and_no_second_keys():
    simulation = simulate_to("share")
    offer = simulation.replies["offer"][VICTIM]
    assert simulation.deliver("offer", VICTIM, simulation.request) == offer


@pytest.mark.parametrize("stage", ["upload", "sign", "unmask"])
def test_every_step_is_answered_once(stage):
    simulation = simulate_to(stage)
    simulation.answer(stage)
    for _ in range(2):
        with pytest.raises(SumRefused):
            simulation.deliver(stage, VICTIM, honest(simulation, stage))


def test_no_step_is_skipped():
    simulation = simulate_to("upload")
    context = honest(simulation, "upload").context
    statement = survivors_statement(context, ())
    signatures = tuple(
        Signed(index, simulation.identities[name].sign(statement))
        for index, name in enumerate(simulation.names)
        if index != ME
    )
    sign = SurvivorsRequest(context, ())
    finished = simulate_to("unmask")
    unmask = replace(honest(finished, "unmask"), context=context, signatures=signatures)
    device = simulation.devices[VICTIM]
    for request in (device.sign_survivors, device.unmask):
        message: Any = sign if request == device.sign_survivors else unmask
        with pytest.raises(SumRefused, match="too early"):
            request(message)
    simulation.deliver("upload", VICTIM, honest(simulation, "upload"))
    with pytest.raises(SumRefused, match="too early"):
        device.unmask(unmask)


def test_a_second_vector_is_never_masked_with_the_same_masks():
    simulation = simulate_to("upload")
    request = honest(simulation, "upload")
    simulation.deliver("upload", VICTIM, request)
    fewer = replace(request, boxes=request.boxes[:-1])
    device = simulation.devices[VICTIM]
    vector = np.zeros(6, np.uint32)
    with pytest.raises(SumRefused):
        device.mask(fewer, vector)
    assert not vector.any()


def test_a_second_list_of_the_dead_is_never_signed():
    simulation = simulate_to("sign")
    request = honest(simulation, "sign")
    simulation.deliver("sign", VICTIM, request)
    with pytest.raises(SumRefused):
        simulation.deliver("sign", VICTIM, replace(request, dead=(0,)))


def test_a_round_that_was_unmasked_is_not_summed_again_without_one_device():
    simulation = simulate_to("unmask")
    later = replace(simulation.request, attempt=simulation.request.attempt + 1)
    simulation.devices[VICTIM].offer(later)  # asked for in good time, before the answer
    simulation.deliver("unmask", VICTIM, honest(simulation, "unmask"))
    client = simulation.devices[VICTIM]
    for attempt in (later.attempt, later.attempt + 1, 2**31 - 1):
        with pytest.raises(SumRefused, match="offered before"):
            client.offer(replace(later, attempt=attempt))
    client.offer(replace(later, round=later.round + 1, attempt=0))


def test_a_sum_gives_way_to_the_next_and_cannot_be_resumed():
    simulation = simulate_to("sign")
    other = Simulation(7, request=make_request(attempt=1))
    other.register, other.devices = simulation.register, simulation.devices
    other.run_to("share")
    with pytest.raises(SumRefused, match="not the sum"):
        simulation.deliver("sign", VICTIM, honest(simulation, "sign"))


@pytest.mark.parametrize("stage", ["upload", "sign", "unmask"])
def test_a_step_of_another_sum_is_refused(stage):
    simulation = simulate_to(stage)
    request = replace(honest(simulation, stage), context=bytes(32))
    assert_refused(simulation, stage, request, "not the sum")


def test_keys_for_an_earlier_sum_are_not_had_by_asking_with_the_shares():
    simulation = simulate_to("unmask")
    request = replace(honest(simulation, "unmask"), next=make_request(round=2))
    assert_refused(simulation, "unmask", request, "offered before")


# --- 2. the sum is the one that the device means ---


@pytest.mark.parametrize(
    "changes", [{"run": "ab"}, {"purpose": "evaluate"}, {"round": 4}, {"attempt": 1}], ids=str
)
def test_the_terms_are_of_the_sum_that_was_offered_for(changes):
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    request = replace(request, terms=replace(request.terms, **changes))
    assert_refused(simulation, "share", request, "no unused keys")


@pytest.mark.parametrize("field", ["model", "config"])
def test_model_and_configuration_are_those_the_device_knows(field):
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    request = replace(request, terms=replace(request.terms, **{field: "e" * 64}))
    assert_refused(simulation, "share", request, "another model or configuration")


# --- 3. the cohort ---


def bend_roster(simulation: Simulation, index: int, **changes: Any) -> ShareRequest:
    """Return the honest request with one offer changed and signed by its device again."""
    request = honest(simulation, "share")
    roster = list(request.roster)
    offer = replace(roster[index], **changes)
    signer = simulation.identities[simulation.names[index]]
    statement = offer_statement(request.terms.instance, offer)
    roster[index] = replace(offer, signature=signer.sign(statement))
    return replace(request, roster=tuple(roster))


def test_a_cohort_smaller_than_the_policy_asks_is_refused():
    simulation = simulate_to("share", policy=DevicePolicy(minimum_cohort=8, corrupt_fraction=0.0))
    with pytest.raises(SumRefused, match="smaller than 8"):
        simulation.deliver("share", VICTIM, honest(simulation, "share"))


def test_the_roster_is_as_long_as_the_terms_say():
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    for terms in (make_terms(simulation.request, 8), make_terms(simulation.request, 6)):
        bent = replace(request, terms=terms)
        with pytest.raises(SumRefused, match="as long as"):
            simulation.deliver("share", VICTIM, bent)
    simulation.deliver("share", VICTIM, request)


def test_a_huge_roster_is_no_message():
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    huge = replace(request, roster=request.roster[:1] * (MAXIMUM_COHORT + 1))
    with pytest.raises(MessageError):
        simulation.deliver("share", VICTIM, huge)


def test_the_roster_is_sorted():
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    bent = replace(request, roster=request.roster[::-1])
    assert_refused(simulation, "share", bent, "not sorted")


def test_nobody_is_in_the_roster_twice():
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    twice = (*request.roster[:4], *request.roster[3:6])
    assert_refused(simulation, "share", replace(request, roster=twice), "twice")


@pytest.mark.parametrize("field", ["sealing_key", "masking_key", "seed_commitment"])
def test_no_key_is_in_the_roster_twice(field):
    simulation = simulate_to("share")
    copied = getattr(honest(simulation, "share").roster[4], field)
    bent = bend_roster(simulation, 5, **{field: copied})
    assert_refused(simulation, "share", bent, "in common")


def test_no_key_seals_and_masks():
    simulation = simulate_to("share")
    copied = honest(simulation, "share").roster[4].sealing_key
    assert_refused(simulation, "share", bend_roster(simulation, 5, masking_key=copied), "in common")


def test_the_own_offer_is_in_the_roster():
    simulation = simulate_to("share", clients=8)
    request = honest(simulation, "share")
    roster = tuple(offer for offer in request.roster if offer.device != VICTIM)
    bent = ShareRequest(make_terms(simulation.request, 7), roster)
    assert_refused(simulation, "share", bent, "own offer")


@pytest.mark.parametrize("field", ["sealing_key", "masking_key", "seed_commitment", "signature"])
def test_the_own_offer_is_in_the_roster_as_it_was_sent(field):
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    roster = list(request.roster)
    value = AgreementKey.generate().public * (2 if field == "signature" else 1)
    roster[ME] = replace(roster[ME], **{field: value})
    assert_refused(simulation, "share", replace(request, roster=tuple(roster)), "own offer")


def sign_offer(simulation: Simulation, identity: Identity) -> KeyOffer:
    """Return fresh keys for the sum, signed."""
    keys = [AgreementKey.generate().public for _ in range(3)]
    offer = KeyOffer(identity.device, *keys, signature=bytes(64))
    statement = offer_statement(simulation.request, offer)
    return replace(offer, signature=identity.sign(statement))


@pytest.mark.parametrize("graph", [(7, 6), (4, 4)], ids=["full", "regular"])
def test_devices_that_are_not_registered_do_not_count(graph):
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    degree, threshold = graph
    terms = make_terms(simulation.request, 8, degree=degree, threshold=threshold)
    stranger = sign_offer(simulation, Identity.generate("device-999"))
    bent = ShareRequest(terms, (*request.roster, stranger))
    assert_refused(simulation, "share", bent, "not in the register")


def test_keys_that_their_device_did_not_sign_are_refused():
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    forged = sign_offer(simulation, Identity.generate(simulation.names[5]))
    roster = (*request.roster[:5], forged, request.roster[6])
    assert_refused(simulation, "share", replace(request, roster=roster), "device-005")


@pytest.mark.parametrize("field", ["sealing_key", "masking_key", "seed_commitment"])
def test_swapped_keys_are_refused(field):
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    roster = list(request.roster)
    roster[5] = replace(roster[5], **{field: AgreementKey.generate().public})
    assert_refused(simulation, "share", replace(request, roster=tuple(roster)), "device-005")


def test_keys_that_two_devices_have_changed_for_each_others_are_refused():
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    fourth, fifth = request.roster[4:6]
    crossed = (replace(fifth, device=fourth.device), replace(fourth, device=fifth.device))
    roster = (*request.roster[:4], *crossed, request.roster[6])
    assert_refused(simulation, "share", replace(request, roster=roster), "device-004")


def test_keys_without_a_signature_are_refused():
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    unsigned = replace(request.roster[5], signature=bytes(64))
    roster = (*request.roster[:5], unsigned, request.roster[6])
    assert_refused(simulation, "share", replace(request, roster=roster), "device-005")


@pytest.mark.parametrize(
    "earlier", [{"run": "ab"}, {"purpose": "evaluate"}, {"round": 2}, {"attempt": 1}], ids=str
)
def test_keys_of_another_sum_are_refused(earlier):
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    other = Simulation(7, request=make_request(**earlier))
    replayed = sign_offer(other, simulation.identities[simulation.names[5]])
    roster = (*request.roster[:5], replayed, request.roster[6])
    assert_refused(simulation, "share", replace(request, roster=roster), "device-005")


@pytest.mark.parametrize("field", ["sealing_key", "masking_key"])
def test_a_key_of_low_order_is_refused_although_it_is_signed(field):
    simulation = simulate_to("share")
    bent = bend_roster(simulation, 5, **{field: LOW_ORDER})
    assert_refused(simulation, "share", bent, "low order")


def test_in_a_ring_the_neighbours_keys_are_verified():
    simulation = simulate_to("share", clients=9, terms={"degree": 4, "threshold": 3})
    request = honest(simulation, "share")
    neighbours = strangers = 0
    while not (neighbours and strangers):
        for index, name in enumerate(simulation.names):
            if index == ME:
                continue
            forged = sign_offer(simulation, Identity.generate(name))
            roster = (*request.roster[:index], forged, *request.roster[index + 1 :])
            context = sum_context(request.terms, roster)
            if index in Graph(9, 4, context).neighbours(ME):
                neighbours += 1
                with pytest.raises(SumRefused, match=name):
                    simulation.deliver("share", VICTIM, replace(request, roster=roster))
            else:
                strangers += 1  # whose neighbours will refuse


# --- 4. threshold and degree are safe, sums cannot wrap ---

UNSAFE = {
    "one share is enough": {"threshold": 1},
    "half the shares": {"threshold": 3},
    "more than there are": {"threshold": 8},
    "two neighbours": {"degree": 2, "threshold": 1},
    "odd degree": {"degree": 3, "threshold": 3},
    "no neighbours": {"degree": 0, "threshold": 1},
    "more neighbours than devices": {"degree": 8, "threshold": 8},
}


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_parameters_are_refused(case):
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    bent = replace(request, terms=replace(request.terms, **UNSAFE[case]))
    assert_refused(simulation, "share", bent, "not safe")


def test_a_threshold_counts_on_the_corrupt_of_the_policy():
    simulation = simulate_to("share", clients=20, terms={"threshold": 11})
    simulation.deliver("share", VICTIM, honest(simulation, "share"))
    strict = simulate_to(
        "share", clients=20, terms={"threshold": 11}, policy=DevicePolicy(corrupt_fraction=0.1)
    )
    with pytest.raises(SumRefused, match="not safe"):
        strict.deliver("share", VICTIM, honest(strict, "share"))


def test_an_update_is_summed_under_as_much_noise_as_the_policy_asks_or_not_at_all():
    # Of 7 devices 5 may remain; none is corrupt. Every device adds noise of scale s.
    sensitivity = make_terms(make_request(), 7).quantiser.sensitivity
    enough = sensitivity / math.sqrt(5)
    policy = DevicePolicy(minimum_cohort=2, corrupt_fraction=0.0, minimum_noise=1.0)
    for scale in (0.0, 0.999 * enough, enough, 2 * enough):
        simulation = simulate_to("share", policy=policy, terms={"noise_scale": scale})
        if scale < enough:
            with pytest.raises(SumRefused, match="noise may be less than 1 times"):
                simulation.deliver("share", VICTIM, honest(simulation, "share"))
        else:
            simulation.deliver("share", VICTIM, honest(simulation, "share"))


def test_the_noise_of_the_corrupt_of_the_policy_does_not_count():
    # Of 20 devices 14 may remain, and 2 of them may be corrupt.
    scale = make_terms(make_request(), 20).quantiser.sensitivity / math.sqrt(14)
    fields = {"clients": 20, "terms": {"noise_scale": scale}}
    trusting = DevicePolicy(corrupt_fraction=0.0, minimum_noise=1.0)
    simulation = simulate_to("share", policy=trusting, **fields)
    simulation.deliver("share", VICTIM, honest(simulation, "share"))
    wary = DevicePolicy(corrupt_fraction=0.1, minimum_noise=1.0)
    simulation = simulate_to("share", policy=wary, **fields)
    with pytest.raises(SumRefused, match="noise may be less"):
        simulation.deliver("share", VICTIM, honest(simulation, "share"))


def test_figures_without_an_update_are_summed_without_noise():
    policy = DevicePolicy(minimum_cohort=2, corrupt_fraction=0.0, minimum_noise=1.0)
    request = make_request(purpose="evaluate")
    figures = simulate_to("share", policy=policy, size=0, terms={"counters": 3}, request=request)
    figures.deliver("share", VICTIM, honest(figures, "share"))
    update = simulate_to("share", policy=policy, terms={"counters": 3}, request=request)
    with pytest.raises(SumRefused, match="noise may be less"):
        update.deliver("share", VICTIM, honest(update, "share"))


def test_a_sparse_ring_is_refused_under_the_usual_policy():
    simulation = simulate_to(
        "share", clients=60, terms={"degree": 10, "threshold": 7}, policy=DevicePolicy()
    )
    with pytest.raises(SumRefused, match="not safe"):
        simulation.deliver("share", VICTIM, honest(simulation, "share"))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision_bits": 24, "modulus_bits": 16},
        {"precision_bits": 31},
        {"noise_scale": 1e9},
        {"noise_scale": -1.0},
        {"norm": 0.0},
    ],
    ids=str,
)
def test_terms_under_which_a_sum_could_wrap_are_refused(changes):
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    bent = replace(request, terms=replace(request.terms, **changes))
    assert_refused(simulation, "share", bent, "do not hold a sum")


# --- 5. shares of a threshold of neighbours arrive before the vector is masked ---


def test_a_device_masks_with_a_threshold_of_neighbours_or_not_at_all():
    simulation = simulate_to("upload")  # t = 5, its own share counts
    request = honest(simulation, "upload")
    bent = replace(request, boxes=request.boxes[:3])
    assert_refused(simulation, "upload", bent, "Fewer than 5")


def test_in_a_ring_a_device_masks_with_a_threshold_of_neighbours_or_not_at_all():
    simulation = simulate_to("upload", clients=9, terms={"degree": 4, "threshold": 3})
    request = honest(simulation, "upload")
    bent = replace(request, boxes=request.boxes[:2])
    assert_refused(simulation, "upload", bent, "Fewer than 3")


def test_a_neighbours_shares_count_once():
    simulation = simulate_to("upload")
    request = honest(simulation, "upload")
    bent = replace(request, boxes=(*request.boxes, request.boxes[0]))
    assert_refused(simulation, "upload", bent, "twice")


def test_shares_come_from_neighbours_only():
    simulation = simulate_to("upload")
    request = honest(simulation, "upload")
    for foreign in (ME, 7, MAXIMUM_COHORT - 1):
        box = Box(foreign, bytes(BOX_BYTES))
        with pytest.raises(SumRefused, match="not a neighbour"):
            simulation.deliver("upload", VICTIM, replace(request, boxes=(*request.boxes, box)))
    simulation.deliver("upload", VICTIM, request)


@pytest.mark.parametrize("vector", [np.zeros(5, np.uint32), np.zeros(6, np.uint16)], ids=str)
def test_a_vector_that_does_not_fit_the_terms_is_not_masked(vector):
    simulation = simulate_to("upload")
    with pytest.raises(FedspkError, match="terms ask for"):
        simulation.devices[VICTIM].mask(honest(simulation, "upload"), vector)
    simulation.deliver("upload", VICTIM, honest(simulation, "upload"))


def test_a_neighbour_whose_shares_were_withheld_cannot_be_alive():
    simulation = simulate_to("upload")
    request = honest(simulation, "upload")
    simulation.requests["upload"][VICTIM] = replace(request, boxes=request.boxes[1:])
    simulation.devices[VICTIM].mask(simulation.requests["upload"][VICTIM], np.zeros(6, np.uint32))
    with pytest.raises(SumRefused, match="called alive"):
        simulation.devices[VICTIM].sign_survivors(SurvivorsRequest(request.context, ()))
    simulation.devices[VICTIM].sign_survivors(SurvivorsRequest(request.context, (0,)))


# --- 6. the device derives who is alive ---

DEAD_LISTS = {
    "names this device": ((ME,), "names this device"),
    "names one twice": ((0, 0), "not ascending"),
    "descends": ((5, 4), "not ascending"),
    "names one out of range": ((7,), "out of range"),
    "leaves too few": ((0, 1, 3), "Fewer than 5"),
    "names everybody": ((0, 1, 2, 3, 4, 5, 6), "names this device"),
}


@pytest.mark.parametrize("case", DEAD_LISTS)
def test_a_list_of_the_dead_is_refused_that(case):
    dead, because = DEAD_LISTS[case]
    simulation = simulate_to("sign")
    bent = replace(honest(simulation, "sign"), dead=dead)
    assert_refused(simulation, "sign", bent, because)


def test_no_fewer_devices_than_the_policy_asks_remain_in_the_sum():
    policy = DevicePolicy(minimum_cohort=6, corrupt_fraction=0.0)
    simulation = simulate_to("sign", policy=policy)  # of 7, of which the threshold asks 5
    request = honest(simulation, "sign")
    bent = replace(request, dead=(0, 1))
    assert_refused(simulation, "sign", bent, "A sum over 5 is smaller than 6")
    simulation = simulate_to("sign", policy=policy)
    simulation.deliver("sign", VICTIM, replace(honest(simulation, "sign"), dead=(0,)))


def test_in_a_ring_a_threshold_of_the_own_neighbours_is_alive():
    simulation = simulate_to("sign", clients=30, terms={"degree": 8, "threshold": 6})
    request = honest(simulation, "sign")
    neighbours = Graph(30, 8, request.context).neighbours(ME)
    bent = replace(request, dead=neighbours[:3])
    assert_refused(simulation, "sign", bent, "holders of this device's shares")


def test_in_a_ring_a_sum_holds_a_share_of_the_whole_cohort():
    simulation = simulate_to("sign", clients=30, terms={"degree": 8, "threshold": 6})
    request = honest(simulation, "sign")
    neighbours = Graph(30, 8, request.context).neighbours(ME)
    strangers = [index for index in range(30) if index not in {ME, *neighbours}]
    bent = replace(request, dead=tuple(strangers[:8]))
    assert_refused(simulation, "sign", bent, "Fewer than 23 of 30")


@pytest.mark.parametrize("graph", [(11, 8), (10, 6)], ids=["full", "regular"])
def test_nobody_gives_both_kinds_of_share_of_a_device(graph):
    degree, threshold = graph
    simulation = Simulation(
        12,
        terms={"degree": degree, "threshold": threshold},
        fails={"share": ["device-001"], "upload": ["device-003", "device-004"]},
    )
    simulation.run()
    dead = set(simulation.requests["sign"][VICTIM].dead)
    assert dead == {1, 3, 4}
    for reply in simulation.replies["unmask"].values():
        seeds = {share.index for share in reply.seed_shares}
        keys = {share.index for share in reply.key_shares}
        assert not seeds & dead
        assert keys <= {3, 4}  # device 1 has shared nothing


# --- 7. shares are for survivors that a threshold of neighbours has signed ---


def test_too_few_signatures_are_refused():
    simulation = simulate_to("unmask")
    request = honest(simulation, "unmask")
    bent = replace(request, signatures=request.signatures[1:])
    assert_refused(simulation, "unmask", bent, "Fewer than 5")


def test_a_signature_counts_once():
    simulation = simulate_to("unmask")
    request = honest(simulation, "unmask")
    bent = replace(request, signatures=(*request.signatures[:-1], request.signatures[-2]))
    assert_refused(simulation, "unmask", bent, "twice")


def test_a_signature_does_not_count_under_another_name():
    simulation = simulate_to("unmask")
    request = honest(simulation, "unmask")
    renamed = Signed(6, request.signatures[0].signature)
    bent = replace(request, signatures=(*request.signatures[1:], renamed))
    assert_refused(simulation, "unmask", bent, "not what was signed")


@pytest.mark.parametrize("index", [ME, 7, MAXIMUM_COHORT - 1])
def test_only_neighbours_signatures_count(index):
    simulation = simulate_to("unmask")
    request = honest(simulation, "unmask")
    statement = survivors_statement(request.context, ())
    foreign = Signed(index, simulation.identities[VICTIM].sign(statement))
    signatures = sorted((*request.signatures[:-1], foreign), key=lambda signed: signed.index)
    bent = replace(request, signatures=tuple(signatures))
    assert_refused(simulation, "unmask", bent, "dead or not a neighbour")


def test_a_dead_device_has_no_voice():
    simulation = simulate_to("unmask", fails={"upload": ["device-000"]})
    request = honest(simulation, "unmask")
    statement = survivors_statement(request.context, (0,))
    voice = Signed(0, simulation.identities["device-000"].sign(statement))
    bent = replace(request, signatures=(voice, *request.signatures[:-1]))
    assert_refused(simulation, "unmask", bent, "dead or not a neighbour")


def test_a_stranger_has_no_voice_in_a_ring():
    simulation = simulate_to("unmask", clients=12, terms={"degree": 4, "threshold": 3})
    request = honest(simulation, "unmask")
    neighbours = Graph(12, 4, request.context).neighbours(ME)
    stranger = next(i for i in range(12) if i not in {ME, *neighbours})
    statement = survivors_statement(request.context, ())
    voice = Signed(stranger, simulation.identities[simulation.names[stranger]].sign(statement))
    signatures = sorted((*request.signatures[:-1], voice), key=lambda signed: signed.index)
    bent = replace(request, signatures=tuple(signatures))
    assert_refused(simulation, "unmask", bent, "dead or not a neighbour")


@pytest.mark.parametrize("what", ["another list", "another sum"])
def test_signatures_of_something_else_do_not_count(what):
    simulation = simulate_to("unmask")
    request = honest(simulation, "unmask")
    context, dead = (request.context, (6,)) if what == "another list" else (bytes(32), ())
    statement = survivors_statement(context, dead)
    signatures = tuple(
        Signed(signed.index, simulation.identities[simulation.names[signed.index]].sign(statement))
        for signed in request.signatures
    )
    bent = replace(request, signatures=signatures)
    assert_refused(simulation, "unmask", bent, "not what was signed")


def test_two_lists_of_the_dead_for_two_halves_convince_nobody():
    simulation = simulate_to("sign", clients=10)
    context = honest(simulation, "sign").context
    halves = {0: (9,), 1: ()}
    signatures = {
        half: [
            Signed(
                index, simulation.deliver("sign", name, SurvivorsRequest(context, dead)).signature
            )
            for index, name in enumerate(simulation.names[:9])
            if index % 2 == half
        ]
        for half, dead in halves.items()
    }
    for half, own in signatures.items():
        for signed in own:
            name = simulation.names[signed.index]
            device = simulation.devices[name]
            others = tuple(s for s in own if s != signed)
            everybody = sorted((*others, *signatures[1 - half]), key=lambda s: s.index)
            request = simulate_to("unmask").requests["unmask"][VICTIM]
            for voices in (others, tuple(everybody)):
                with pytest.raises(SumRefused):
                    device.unmask(replace(request, context=context, signatures=voices))


# --- two stories for two halves ---


def test_two_rosters_for_two_halves_give_shares_of_neither():
    simulation = simulate_to("share", clients=6)
    other_half = simulation.names[3:]
    terms = simulation.server.terms

    def tell(stage: str, device: str, request: Any) -> Any:
        if stage == "share" and device in other_half:
            return replace(request, terms=replace(terms, cohort=1))
        return request

    simulation.bend_request = tell
    simulation.answer("share")
    assert not simulation.refusals["share"]
    simulation.run_stage("upload")
    assert set(simulation.refusals["upload"]) == set(other_half)  # whose context is another


def tell_one(simulation: Simulation, request: ShareRequest) -> tuple[set[int], set[int]]:
    """Tell one device another story than the others; return whose boxes it can open, and they.

    The aggregator has everybody's signing keys and lets the device unmask what it likes: a share of
    the masking key of device 0, whose box has come, and who is said to have failed.
    """
    device, terms = simulation.devices[VICTIM], request.terms
    boxes = {VICTIM: device.share(request, model=terms.model, config=terms.config).boxes}
    for name, other in simulation.requests["share"].items():
        if name != VICTIM:
            boxes[name] = simulation.deliver("share", name, other).boxes
    opened = {}
    for name, told in ((VICTIM, request), ("device-003", honest(simulation, "share"))):
        index, dead = simulation.names.index(name), 0 if name == VICTIM else ME
        context = sum_context(told.terms, told.roster)
        received = tuple(
            replace(box, index=sender)
            for sender, other in enumerate(simulation.names)
            for box in boxes[other]
            if box.index == index
        )
        client = simulation.devices[name]
        quantiser = told.terms.quantiser
        client.mask(UploadRequest(context, received), np.zeros(quantiser.length, quantiser.dtype))
        client.sign_survivors(SurvivorsRequest(context, (dead,)))
        statement = survivors_statement(context, (dead,))
        signatures = tuple(
            Signed(peer, simulation.identities[offer.device].sign(statement))
            for peer, offer in enumerate(told.roster)
            if peer not in {index, dead}
        )
        reply = client.unmask(UnmaskRequest(context, signatures, ()))
        opened[name] = {share.index for share in reply.key_shares}
    return opened[VICTIM], opened["device-003"]


OTHER_TERMS = {
    "cohort": 1,
    "model": "e" * 64,
    "config": "e" * 64,
    "size": 5,
    "counters": 1,
    "precision_bits": 9,
    "modulus_bits": 32,
    "norm": 2.0,
    "maximum_weight": 8,
    "noise_scale": 1.0,
    "threshold": 6,
}


def test_devices_that_are_told_the_same_open_each_others_boxes():
    simulation = simulate_to("share")
    assert tell_one(simulation, honest(simulation, "share")) == ({0}, {ME})


@pytest.mark.parametrize("field", OTHER_TERMS)
def test_a_device_that_is_told_other_terms_has_no_key_in_common_with_the_rest(field):
    simulation = simulate_to("share", terms={"precision_bits": 8, "modulus_bits": 16})
    request = honest(simulation, "share")
    terms = replace(request.terms, **{field: OTHER_TERMS[field]})
    assert tell_one(simulation, replace(request, terms=terms)) == (set(), set())


def test_a_device_that_is_told_of_other_keys_has_no_key_in_common_with_the_rest():
    simulation = simulate_to("share")
    fresh = {name: AgreementKey.generate().public for name in ("sealing_key", "masking_key")}
    assert tell_one(simulation, bend_roster(simulation, 5, **fresh)) == (set(), set())


def test_a_device_that_is_told_of_another_cohort_has_no_key_in_common_with_the_rest():
    simulation = simulate_to("share", clients=8)
    *roster, last = honest(simulation, "share").roster
    cohort = ShareRequest(make_terms(simulation.request, 7), tuple(roster))
    simulation.names.pop()
    simulation.requests["share"] = dict.fromkeys(simulation.names, cohort)
    other = replace(cohort, roster=(*roster[:6], last))
    assert tell_one(simulation, other) == (set(), set())


def test_a_sum_of_another_version_is_no_message():
    simulation = simulate_to("share")
    request = honest(simulation, "share")
    with pytest.raises(MessageError):
        simulation.deliver(
            "share", VICTIM, replace(request, terms=replace(request.terms, version=2))
        )
    with pytest.raises(MessageError):
        simulation.deliver("offer", VICTIM, make_request(version=2))


def test_a_box_withheld_from_one_side_costs_the_other_its_share():
    """The aggregator cuts a device from its neighbour in one direction.

    The neighbour then masks with the device but not the device with the neighbour, which must not
    help to unmask it: it would open the way to a sum over a part of a ring.
    """
    simulation = simulate_to("upload", clients=12, terms={"degree": 6, "threshold": 4})
    context = honest(simulation, "upload").context
    neighbour = Graph(12, 6, context).neighbours(ME)[0]

    def withhold(stage: str, device: str, request: Any) -> Any:
        if stage == "upload" and device == VICTIM:
            boxes = tuple(box for box in request.boxes if box.index != neighbour)
            return replace(request, boxes=boxes)
        return request

    simulation.bend_request = withhold
    with pytest.raises(MessageError, match="did not mask"):
        request = withhold("upload", VICTIM, honest(simulation, "upload"))
        simulation.receive("upload", VICTIM, simulation.deliver("upload", VICTIM, request))
    # The aggregator adds the vector in spite of that, and goes on with the others.
    for name, request in simulation.requests["upload"].items():
        if name != VICTIM:
            simulation.deliver("upload", name, request)
    sign = SurvivorsRequest(context, ())
    statement = survivors_statement(context, ())
    device = simulation.names[neighbour]
    simulation.deliver("sign", device, sign)
    signatures = tuple(
        Signed(index, simulation.identities[simulation.names[index]].sign(statement))
        for index in Graph(12, 6, context).neighbours(neighbour)[:4]
    )
    template = simulate_to("unmask").requests["unmask"][VICTIM]
    bent = replace(template, context=context, signatures=signatures, proofs=(Proof(ME, bytes(16)),))
    reply = simulation.deliver("unmask", device, bent)
    assert ME not in {share.index for share in reply.seed_shares}


def test_a_proof_speaks_for_its_device_and_direction_alone():
    simulation = simulate_to("unmask")
    request = honest(simulation, "unmask")
    own = simulation.replies["upload"][VICTIM].proofs
    first, second, *rest = request.proofs
    swapped = (Proof(first.index, second.proof), Proof(second.index, own[1].proof), *rest)
    reply = simulation.deliver("unmask", VICTIM, replace(request, proofs=swapped))
    given = {share.index for share in reply.seed_shares}
    assert given == set(range(7)) - {first.index, second.index}


def test_sealed_shares_under_another_name_do_not_open():
    simulation = simulate_to("upload")

    def swap(stage: str, device: str, request: Any) -> Any:
        if stage == "upload" and device == VICTIM:
            first, second, *rest = request.boxes
            swapped = (Box(first.index, second.box), Box(second.index, first.box))
            return replace(request, boxes=(*swapped, *rest))
        return request

    simulation.bend_request = swap
    simulation.answer("upload")
    simulation.run_stage("sign")
    simulation.run_stage("unmask")
    reply = simulation.replies["unmask"][VICTIM]
    assert {share.index for share in reply.seed_shares} == {2, 3, 4, 5, 6}
    assert np.array_equal(simulation.server.finish(), simulation.plain_sum(simulation.names))


def test_own_boxes_sent_back_do_not_open():
    simulation = simulate_to("upload")

    def reflect(stage: str, device: str, request: Any) -> Any:
        if stage == "upload" and device == VICTIM:
            return replace(request, boxes=simulation.replies["share"][VICTIM].boxes)
        return request

    simulation.bend_request = reflect
    simulation.answer("upload")
    simulation.run_stage("sign")
    simulation.run_stage("unmask")
    assert {s.index for s in simulation.replies["unmask"][VICTIM].seed_shares} == {ME}


def test_boxes_of_another_sum_do_not_open():
    simulation = simulate_to("upload")
    earlier = simulate_to("upload")

    def replay(stage: str, device: str, request: Any) -> Any:
        if stage == "upload":
            return replace(request, boxes=earlier.requests["upload"][device].boxes)
        return request

    simulation.bend_request = replay
    simulation.answer("upload")
    simulation.run_stage("sign")
    simulation.run_stage("unmask")
    with pytest.raises(SumAborted):
        simulation.server.finish()


# --- 8. nothing secret of a sum outlives it ---


def test_after_the_shares_are_given_the_device_takes_part_in_nothing():
    simulation = simulate_to("unmask")
    simulation.answer("unmask")
    device = simulation.devices[VICTIM]
    assert device.terms is None
    with pytest.raises(SumRefused):
        device.share(honest(simulation, "share"), model=MODEL, config=CONFIG)


@pytest.mark.parametrize(
    "policy",
    [
        {"minimum_cohort": 1},
        {"corrupt_fraction": 0.34},
        {"corrupt_fraction": -0.1},
        {"minimum_noise": -1.0},
        {"minimum_noise": math.nan},
        {"minimum_noise": math.inf},
    ],
    ids=str,
)
def test_no_policy_admits_sums_that_nothing_protects(policy):
    with pytest.raises(FedspkError, match="policy"):
        DevicePolicy(**policy)
