"""Messages that come twice, late, in another order or cut, and devices that are killed."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_simulator import REPLIES, REQUESTS, STAGES, Simulation, make_request

from fedspk.errors import FedspkError
from fedspk.secagg.device_state import DeviceState
from fedspk.secagg.errors import MessageError, SumRefused

DEVICE = "device-002"


def assert_sum_is_exact(simulation: Simulation) -> None:
    total = simulation.server.finish()
    assert np.array_equal(total, simulation.plain_sum(simulation.server.survivors))


# --- messages ---


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_request_that_comes_twice_is_refused_and_harms_nothing(stage):
    simulation = Simulation(7)
    for at in STAGES:
        simulation.run_stage(at)
        if at == stage:
            for name, request in simulation.requests[stage].items():
                vectors = dict(simulation.vectors)
                with pytest.raises(SumRefused):
                    simulation.deliver(stage, name, request)
                simulation.vectors = vectors
    assert_sum_is_exact(simulation)
    assert simulation.server.survivors == tuple(simulation.names)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_reply_that_comes_twice_is_an_error_and_harms_nothing(stage):
    simulation = Simulation(7)
    for at in STAGES:
        simulation.run_stage(at)
        if at == stage:
            for name, reply in simulation.replies[stage].items():
                with pytest.raises(MessageError, match="twice"):
                    simulation.receive(stage, name, reply)
    assert_sum_is_exact(simulation)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_the_order_of_the_replies_does_not_matter(stage):
    simulation = Simulation(9, terms={"degree": 6, "threshold": 4})
    for at in STAGES:
        simulation.ask(at)
        if at == stage:
            requests = list(simulation.requests[at].items())
            random.Random(stage).shuffle(requests)
            simulation.requests[at] = dict(requests)
        simulation.answer(at)
    assert_sum_is_exact(simulation)


@pytest.mark.parametrize("stage", STAGES[1:4])
@pytest.mark.parametrize("delay", [1, 2, 3])
def test_a_reply_that_comes_in_a_later_stage_is_an_error_and_its_device_has_failed(stage, delay):
    simulation = Simulation(7)
    held: list[Any] = []

    def hold(at: str, device: str, reply: Any) -> Any:
        if (at, device) != (stage, DEVICE):
            return reply
        held.append(reply)
        return None

    simulation.bend_reply = hold
    late = min(STAGES.index(stage) + delay, len(STAGES) - 1)
    for index, at in enumerate(STAGES):
        simulation.run_stage(at)
        if index == late:
            with pytest.raises(MessageError):
                simulation.receive(stage, DEVICE, held[0])
    assert_sum_is_exact(simulation)
    assert (DEVICE in simulation.server.survivors) == (stage == "sign")


def test_a_reply_after_the_end_is_an_error():
    simulation = Simulation(7, fails={"unmask": [DEVICE]})
    simulation.run()
    request = simulation.requests["unmask"][DEVICE]
    with pytest.raises(MessageError, match="out of time"):
        simulation.receive("unmask", DEVICE, simulation.deliver("unmask", DEVICE, request))


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_request_delayed_into_a_later_stage_is_refused(stage):
    simulation = Simulation(7)
    delayed: list[Any] = []

    def delay(at: str, device: str, request: Any) -> Any:
        if (at, device) != (stage, DEVICE):
            return request
        delayed.append(request)
        return None

    simulation.bend_request = delay
    for at in STAGES:
        simulation.run_stage(at)
    simulation.deliver("offer", DEVICE, make_request(attempt=1))
    assert_sum_is_exact(simulation)
    if stage == "share":  # the keys for it are replaced
        with pytest.raises(SumRefused):
            simulation.deliver(stage, DEVICE, delayed[0])
    else:  # the device still waits, but nobody for its answer
        with pytest.raises(MessageError):
            simulation.receive(stage, DEVICE, simulation.deliver(stage, DEVICE, delayed[0]))


def test_a_delayed_offer_request_does_not_undo_a_later_offer():
    simulation = Simulation(5)
    simulation.request = make_request(attempt=1)
    simulation.run_to("offer")
    with pytest.raises(SumRefused):
        simulation.deliver("offer", DEVICE, make_request(attempt=0))
    for stage in STAGES[1:]:
        simulation.run_stage(stage)
    assert_sum_is_exact(simulation)
    assert DEVICE in simulation.server.survivors


@pytest.mark.parametrize("stage", STAGES)
def test_cut_messages_are_errors_on_both_sides(stage):
    simulation = Simulation(5)
    simulation.run_to(stage)
    for kinds, messages in ((REQUESTS, simulation.requests), (REPLIES, simulation.replies)):
        whole = messages[stage][DEVICE].encode()
        for length in range(len(whole)):
            with pytest.raises(MessageError):
                kinds[stage].decode(whole[:length])


# --- devices ---


def test_a_device_goes_on_from_its_state_at_every_stage():
    simulation = Simulation(7, restarts=True, next=make_request(round=4))
    simulation.run_to("unmask")
    assert_sum_is_exact(simulation)
    assert simulation.server.survivors == tuple(simulation.names)
    assert all(reply.offer for reply in simulation.replies["unmask"].values())


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_device_killed_after_it_saved_its_state_does_not_answer_again(stage):
    simulation = Simulation(7)
    lost: list[Any] = []

    def lose(at: str, device: str, reply: Any) -> Any:
        if (at, device) != (stage, DEVICE):
            return reply
        lost.append(reply)
        return None

    simulation.bend_reply = lose
    simulation.run_to(stage)
    device = simulation.devices[DEVICE]
    simulation.devices[DEVICE] = simulation.start(DEVICE, device.state())
    with pytest.raises(SumRefused):
        simulation.deliver(stage, DEVICE, simulation.requests[stage][DEVICE])
    for later in STAGES[STAGES.index(stage) + 1 :]:
        simulation.run_stage(later)
    assert_sum_is_exact(simulation)
    assert (DEVICE in simulation.server.survivors) == (stage in {"sign", "unmask"})


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_device_that_lost_its_state_fails_and_takes_part_in_the_next_sum(stage):
    simulation = Simulation(7)
    simulation.run_to(STAGES[STAGES.index(stage) - 1])
    simulation.devices[DEVICE] = simulation.start(DEVICE)
    for later in STAGES[STAGES.index(stage) :]:
        simulation.run_stage(later)
    assert DEVICE in simulation.refusals[stage]
    assert_sum_is_exact(simulation)
    assert (DEVICE in simulation.server.survivors) == (stage in {"sign", "unmask"})

    simulation.request, simulation.failed = make_request(round=4), set()
    simulation.run_to("unmask")
    assert_sum_is_exact(simulation)
    assert simulation.server.survivors == tuple(simulation.names)


@given(st.data())
def test_a_damaged_state_is_one_sentence(data):
    simulation = Simulation(2)
    simulation.run_to("share")
    state = simulation.devices[DEVICE[:-1] + "1"].state()
    place = data.draw(st.integers(0, len(state) - 1))
    bent = bytearray(state)
    bent[place] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(bent), state[: max(place, 1)], state + b"\0"):
        with pytest.raises(FedspkError, match=r"starts with a fresh offer\.$"):
            simulation.start("device-001", damaged)


@given(st.binary(min_size=1, max_size=200))
def test_noise_is_no_state(noise):
    with pytest.raises(FedspkError):
        DeviceState.decode(noise)


def test_the_state_of_another_device_is_refused():
    simulation = Simulation(2)
    with pytest.raises(FedspkError, match="device-000's"):
        simulation.start("device-001", simulation.devices["device-000"].state())


# --- what the state holds ---


def byte_strings(value: Any) -> set[bytes]:
    """Return all long byte strings inside a value."""
    if isinstance(value, bytes):
        return {value} if len(value) >= 16 else set()
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str | int | float | None):
        return set()
    return {found for item in value for found in byte_strings(item)}


def state_of(simulation: Simulation) -> DeviceState:
    return DeviceState.decode(simulation.devices[DEVICE].state())


def test_a_finished_sum_leaves_nothing_secret_in_the_state():
    simulation = Simulation(7, next=make_request(round=4), fails={"upload": ["device-000"]})
    seen: set[bytes] = set()
    for stage in STAGES[:-1]:
        simulation.run_stage(stage)
        seen |= byte_strings(msgspec.to_builtins(state_of(simulation), builtin_types=(bytes,)))
    simulation.run_stage("unmask")
    reply = simulation.replies["unmask"][DEVICE]
    seen |= {share.share for share in (*reply.seed_shares, *reply.key_shares)}
    state = simulation.devices[DEVICE].state()
    assert len(seen) > 6 * (2 + 2 + 1 + 1)  # of each neighbour keys, proofs, box and share
    assert not [secret for secret in seen if secret in state]


def test_masks_are_forgotten_as_soon_as_they_are_applied():
    simulation = Simulation(7)
    simulation.run_to("share")
    active = state_of(simulation).active
    masks = [active.mask, *(peer.mask for peer in active.neighbours)]
    simulation.run_stage("upload")
    state = simulation.devices[DEVICE].state()
    assert not [mask for mask in masks if mask.key in state]


def test_the_private_keys_are_forgotten_as_soon_as_they_are_shared():
    simulation = Simulation(7)
    simulation.run_to("offer")
    offered = state_of(simulation).offered["train"]
    simulation.run_stage("share")
    state = simulation.devices[DEVICE].state()
    for secret in (offered.sealing_key, offered.masking_key, offered.seed):
        assert secret not in state


def test_secrets_are_not_printed():
    simulation = Simulation(5)
    simulation.run_to("share")
    state = state_of(simulation)
    for text in (repr(state), repr(state.active), repr(state.active.neighbours[0])):
        assert text.endswith("(...)")


def test_a_device_that_has_done_nothing_yet_has_a_state():
    device = Simulation(2).devices["device-000"]
    assert device.terms is None
    assert DeviceState.decode(device.state()) == DeviceState("device-000")
