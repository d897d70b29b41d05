"""Devices that lie: the aggregator drops them, sums without their shares, or names them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from secagg_simulator import Simulation, make_request, make_terms

from fedspk.errors import FedspkError
from fedspk.secagg.device_state import DeviceState
from fedspk.secagg.errors import MessageError, SumAborted
from fedspk.secagg.keys import AgreementKey, DeviceRegister, Identity
from fedspk.secagg.messages import (
    BOX_BYTES,
    Box,
    KeyOffer,
    Proof,
    Share,
    SurvivorsReply,
    offer_statement,
)
from fedspk.secagg.server import SumServer, check_offer, without_copies

LIAR = "device-003"
WRONG_SHARE = bytes(34)
MALFORMED_SHARE = b"\xff" * 34


def lying(stage: str, lie: Any, clients: int = 7, **fields: Any) -> Simulation:
    """Return a sum in which one device bends its reply of one stage."""

    def bend(at: str, device: str, reply: Any) -> Any:
        return lie(reply) if (at, device) == (stage, LIAR) else reply

    return Simulation(clients, bend_reply=bend, **fields)


def assert_sum_is_exact(simulation: Simulation, without: set[str] | None = None) -> None:
    total = simulation.run()
    assert np.array_equal(total, simulation.plain_sum(simulation.server.survivors))
    assert set(simulation.names) - set(simulation.server.survivors) == (without or set())


def resign(offer: KeyOffer, identity: Identity, **changes: Any) -> KeyOffer:
    offer = replace(offer, **changes)
    return replace(offer, signature=identity.sign(offer_statement(make_request(), offer)))


# --- offers ---


@pytest.mark.parametrize(
    "field", ["sealing_key", "masking_key", "seed_commitment", "signature", "device"]
)
def test_an_offer_that_its_device_did_not_sign_is_dropped(field):
    simulation = Simulation(5)
    simulation.run_to("offer")
    offer = simulation.replies["offer"][LIAR]
    value = "device-004" if field == "device" else getattr(offer, field)[::-1]
    with pytest.raises(MessageError, match="verify"):
        check_offer(replace(offer, **{field: value}), simulation.request, simulation.register)


def test_an_offer_for_another_sum_is_dropped():
    simulation = Simulation(5)
    simulation.run_to("offer")
    offer = simulation.replies["offer"][LIAR]
    with pytest.raises(MessageError, match="verify"):
        check_offer(offer, make_request(attempt=1), simulation.register)


def test_an_offer_of_an_unknown_device_is_dropped():
    simulation = Simulation(5)
    simulation.run_to("offer")
    offer = simulation.replies["offer"][LIAR]
    with pytest.raises(MessageError, match="register"):
        check_offer(offer, simulation.request, DeviceRegister({}))


@pytest.mark.parametrize("field", ["sealing_key", "masking_key"])
def test_an_offer_that_others_would_refuse_is_dropped(field):
    simulation = Simulation(5)
    simulation.run_to("offer")
    offer = simulation.replies["offer"][LIAR]
    bent = resign(offer, simulation.identities[LIAR], **{field: bytes(32)})
    with pytest.raises(MessageError, match="low order"):
        check_offer(bent, simulation.request, simulation.register)


def test_devices_with_the_keys_of_others_are_left_out():
    simulation = Simulation(6)
    simulation.run_to("offer")
    offers = simulation.replies["offer"]
    copied = {"masking_key": offers["device-000"].sealing_key}
    bent = [*offers.values(), offers["device-005"]]
    bent[3] = resign(bent[3], simulation.identities[LIAR], **copied)
    kept = [offer.device for offer in without_copies(bent)]
    assert kept == ["device-001", "device-002", "device-004"]
    with pytest.raises(MessageError, match="in common"):
        SumServer(make_terms(simulation.request, 7), bent, simulation.register)


def test_terms_for_another_number_of_devices_are_a_mistake_of_the_caller():
    simulation = Simulation(6)
    simulation.run_to("offer")
    offers = list(simulation.replies["offer"].values())
    with pytest.raises(FedspkError, match="do not fit"):
        SumServer(make_terms(simulation.request, 7), offers, simulation.register)


# --- malformed replies count as none ---


def without_one_box(reply: Any) -> Any:
    return replace(reply, boxes=reply.boxes[1:])


def one_box_twice(reply: Any) -> Any:
    return replace(reply, boxes=(*reply.boxes[:-1], reply.boxes[0]))


def a_box_for_itself(reply: Any) -> Any:
    return replace(reply, boxes=(*reply.boxes[:-1], Box(3, bytes(BOX_BYTES))))


def a_box_too_many(reply: Any) -> Any:
    return replace(reply, boxes=(*reply.boxes, Box(7, bytes(BOX_BYTES))))


@pytest.mark.parametrize("lie", [without_one_box, one_box_twice, a_box_for_itself, a_box_too_many])
def test_a_device_that_does_not_share_with_just_its_neighbours_is_dropped(lie):
    simulation = lying("share", lie)
    assert_sum_is_exact(simulation, without={LIAR})
    assert "just its neighbours" in str(simulation.refusals["share"][LIAR])


def without_one_proof(reply: Any) -> Any:
    return replace(reply, proofs=reply.proofs[1:])


def one_proof_twice(reply: Any) -> Any:
    return replace(reply, proofs=(*reply.proofs[:-1], reply.proofs[0]))


def a_foreign_proof(reply: Any) -> Any:
    return replace(reply, proofs=(*reply.proofs[:-1], Proof(3, bytes(16))))


@pytest.mark.parametrize("lie", [without_one_proof, one_proof_twice, a_foreign_proof])
def test_a_vector_without_just_its_neighbours_proofs_is_not_added(lie):
    simulation = lying("upload", lie)
    assert_sum_is_exact(simulation, without={LIAR})
    assert "did not mask" in str(simulation.refusals["upload"][LIAR])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(23),
        bytes(28),
        np.zeros(5, np.uint32),
        np.zeros((6, 1), np.uint32),
        np.zeros(6, np.uint64),
        np.zeros(6, np.float32),
    ],
    ids=repr,
)
def test_a_vector_of_another_length_or_type_is_not_added(data):
    simulation = Simulation(7)
    simulation.run_to("share")
    simulation.ask("upload")
    request = simulation.requests["upload"][LIAR]
    reply = simulation.deliver("upload", LIAR, request)
    with pytest.raises(MessageError, match="vector"):
        simulation.server.receive_vector(LIAR, reply, data)
    assert simulation.server.survivors == ()
    simulation.receive("upload", LIAR, reply)
    assert simulation.server.survivors == (LIAR,)


@pytest.mark.parametrize("kind", [bytes, memoryview, np.asarray])
def test_a_vector_comes_as_bytes_or_as_an_array(kind):
    simulation = Simulation(5)
    simulation.run_to("share")
    simulation.ask("upload")
    for name, request in simulation.requests["upload"].items():
        reply = simulation.deliver("upload", name, request)
        masked = simulation.vectors[name][1]
        data = masked.tobytes() if kind is bytes else kind(masked.data)
        if kind is memoryview:
            data = masked.data.cast("B")
        simulation.server.receive_vector(name, reply, data)
    simulation.run_stage("sign")
    simulation.run_stage("unmask")
    assert np.array_equal(simulation.server.finish(), simulation.plain_sum(simulation.names))


def test_a_wrong_signature_of_the_survivors_costs_the_signer_its_voice():
    simulation = lying("sign", lambda _: SurvivorsReply(bytes(64)))
    assert_sum_is_exact(simulation)
    assert LIAR not in simulation.requests["unmask"]


@pytest.mark.parametrize(
    "shares",
    [
        {"seed_shares": (Share(0, WRONG_SHARE),)},  # of a device that failed
        {"key_shares": (Share(4, WRONG_SHARE),)},  # of a device that is alive
        {"key_shares": (Share(1, WRONG_SHARE),)},  # of a device that has shared nothing
        {"seed_shares": (Share(10, WRONG_SHARE),)},
        {"seed_shares": (Share(4, WRONG_SHARE), Share(4, WRONG_SHARE))},
        {"seed_shares": (Share(4, WRONG_SHARE), Share(2, WRONG_SHARE))},
    ],
    ids=str,
)
def test_shares_that_were_not_asked_for_are_dropped(shares):
    fails = {"share": ["device-001"], "upload": ["device-000"]}
    simulation = lying("unmask", lambda reply: replace(reply, **shares), clients=10, fails=fails)
    assert_sum_is_exact(simulation, without={"device-000", "device-001"})
    assert "not asked" in str(simulation.refusals["unmask"][LIAR])


@pytest.mark.parametrize("stage", ["share", "upload", "sign", "unmask"])
def test_a_device_outside_the_cohort_is_not_heard(stage):
    simulation = Simulation(5)
    simulation.run_to(stage if stage != "unmask" else "sign")
    if stage == "unmask":
        simulation.run_stage("unmask")
    reply = simulation.replies[stage][LIAR]
    receive = {
        "share": simulation.server.receive_shares,
        "sign": simulation.server.receive_signature,
        "unmask": simulation.server.receive_unmask,
    }
    with pytest.raises(MessageError, match="not asked"):
        if stage == "upload":
            simulation.server.receive_vector("device-999", reply, bytes(24))
        else:
            receive[stage]("device-999", reply)


# --- wrong shares ---


def all_shares_are(share: bytes) -> Any:
    def lie(reply: Any) -> Any:
        return replace(
            reply,
            seed_shares=tuple(Share(s.index, share) for s in reply.seed_shares),
            key_shares=tuple(Share(s.index, share) for s in reply.key_shares),
        )

    return lie


@pytest.mark.parametrize("share", [WRONG_SHARE, MALFORMED_SHARE], ids=["wrong", "malformed"])
@pytest.mark.parametrize("graph", [(9, 7), (8, 6)], ids=["full", "regular"])
def test_wrong_shares_are_set_aside(share, graph):
    degree, threshold = graph
    simulation = lying(
        "unmask",
        all_shares_are(share),
        clients=10,
        terms={"degree": degree, "threshold": threshold},
        fails={"upload": ["device-001"]},
    )
    assert_sum_is_exact(simulation, without={"device-001"})


def test_wrong_shares_without_a_spare_abort_the_sum():
    simulation = lying(
        "unmask", all_shares_are(WRONG_SHARE), fails={"unmask": ["device-000", "device-006"]}
    )
    with pytest.raises(SumAborted, match="cannot be recovered"):
        simulation.run()


def test_a_lying_holder_gets_no_honest_device_blamed():
    silent = {"unmask": ["device-005", "device-006"]}
    for simulation in (
        lying("unmask", all_shares_are(WRONG_SHARE), fails=silent),
        Simulation(6, fails={"unmask": ["device-004", "device-005"]}),
    ):
        with pytest.raises(SumAborted) as caught:
            simulation.run()
        assert caught.value.suspects == ()


def boxes_that_do_not_open(reply: Any) -> Any:
    return replace(reply, boxes=tuple(Box(b.index, os.urandom(BOX_BYTES)) for b in reply.boxes))


def proofs_of_nothing(reply: Any) -> Any:
    return replace(reply, proofs=tuple(Proof(p.index, bytes(16)) for p in reply.proofs))


@pytest.mark.parametrize(
    ("stage", "lie"), [("share", boxes_that_do_not_open), ("upload", proofs_of_nothing)]
)
def test_a_device_whose_secret_nobody_can_give_is_named(stage, lie):
    simulation = lying(stage, lie)
    with pytest.raises(SumAborted) as caught:
        simulation.run()
    assert caught.value.suspects == (LIAR,)


def test_a_device_that_failed_and_has_dealt_wrong_shares_is_named():
    simulation = lying("share", boxes_that_do_not_open, fails={"upload": [LIAR]})
    with pytest.raises(SumAborted) as caught:
        simulation.run()
    assert caught.value.suspects == (LIAR,)


def test_a_device_that_shares_another_seed_than_it_has_committed_to_is_named():
    simulation = Simulation(7)

    def commit_to_another(stage: str, device: str, reply: Any) -> Any:
        if (stage, device) != ("offer", LIAR):
            return reply
        changes = {"seed_commitment": AgreementKey.generate().public}
        return resign(reply, simulation.identities[LIAR], **changes)

    simulation.bend_reply = commit_to_another
    simulation.run_to("offer")
    simulation.ask("share")
    # The liar does not mind its own offer, which is not what its honest code has sent.
    liar = simulation.devices[LIAR]
    state = DeviceState.decode(liar.state())
    mine = simulation.replies["offer"][LIAR]
    offered = {"train": replace(state.offered["train"], offer=mine)}
    simulation.devices[LIAR] = simulation.start(LIAR, replace(state, offered=offered).encode())
    simulation.answer("share")
    for stage in ("upload", "sign", "unmask"):
        simulation.run_stage(stage)
    with pytest.raises(SumAborted) as caught:
        simulation.server.finish()
    assert caught.value.suspects == (LIAR,)


def test_boxes_that_fail_for_few_holders_cost_nothing():
    def lie(reply: Any) -> Any:
        return replace(reply, boxes=(Box(0, os.urandom(BOX_BYTES)), *reply.boxes[1:]))

    assert_sum_is_exact(lying("share", lie))
