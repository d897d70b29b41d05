from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_simulator import STAGES, Simulation, make_request

from fedspk.errors import FedspkError
from fedspk.secagg.client import DevicePolicy
from fedspk.secagg.errors import SumAborted


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    """Draw a cohort, its graph, threshold and modulus, and at which stage each device fails."""
    clients = draw(st.integers(2, 12))
    failing = st.sampled_from((*STAGES, *["never"] * draw(st.integers(1, 20))))
    fates = {f"device-{index:03d}": draw(failing) for index in range(clients)}
    cohort = sum(fate != "offer" for fate in fates.values())
    terms = {}
    if cohort >= 2:
        degrees = [cohort - 1, *range(2, cohort - 1, 2)]
        degree = draw(st.sampled_from(degrees))
        holders = cohort if degree == cohort - 1 else degree
        threshold = draw(st.integers(holders // 2 + 1, holders))
        terms = {"degree": degree, "threshold": threshold}
        if draw(st.booleans()):
            terms |= {"precision_bits": 8, "modulus_bits": 16}
    return Simulation(
        clients,
        size=draw(st.integers(1, 40)),
        terms=terms,
        fails={stage: [name for name, fate in fates.items() if fate == stage] for stage in STAGES},
        restarts=draw(st.booleans()),
    )


@given(simulations())
def test_the_sum_is_exact_or_aborts_whoever_fails_whenever(simulation):
    try:
        total = simulation.run()
    except SumAborted:
        total = None
    assert not any(simulation.refusals.values())
    server = simulation.server
    failures = {stage: len(simulation.fails[stage]) for stage in STAGES[1:]}
    if total is not None:
        assert np.array_equal(total, simulation.plain_sum(server.survivors))
        early = {*simulation.fails["share"], *simulation.fails["upload"]}
        assert set(server.survivors) == set(server.devices) - early
    elif server is not None and server.terms.degree == server.terms.clients - 1:
        assert server.terms.clients - sum(failures.values()) < server.terms.threshold


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_third_of_the_full_graph_may_fail_at_any_stage(stage):
    simulation = Simulation(10, fails={stage: ["device-000", "device-004", "device-009"]})
    assert np.array_equal(simulation.run(), simulation.plain_sum(simulation.server.survivors))


@pytest.mark.parametrize(
    ("stage", "alive"), [("share", 8), ("upload", 8), ("sign", 10), ("unmask", 10)]
)
def test_a_device_is_in_the_sum_once_it_has_uploaded(stage, alive):
    simulation = Simulation(10, fails={stage: ["device-003", "device-007"]})
    assert np.array_equal(simulation.run(), simulation.plain_sum(simulation.server.survivors))
    assert len(simulation.server.survivors) == alive


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("graph", [(9, 7), (6, 5)], ids=["full", "regular"])
def test_the_sum_aborts_when_fewer_than_the_threshold_are_left(stage, graph):
    degree, threshold = graph
    simulation = Simulation(
        10,
        terms={"degree": degree, "threshold": threshold},
        fails={stage: [f"device-{index:03d}" for index in range(0, 10, 2)]},
    )
    with pytest.raises(SumAborted):
        simulation.run()


@pytest.mark.parametrize("stage", ["share", "upload", "sign"])
def test_the_sum_aborts_as_soon_as_it_cannot_be_finished(stage):
    simulation = Simulation(10, fails={stage: ["device-000", "device-001", "device-002", "x"]})
    simulation.fails[stage][3] = "device-003"
    simulation.run_to(stage)
    with pytest.raises(SumAborted, match="needs 7"):
        simulation.ask(STAGES[STAGES.index(stage) + 1])


def test_after_an_abort_the_same_devices_sum_in_another_attempt():
    simulation = Simulation(5, fails={"sign": ["device-000", "device-001"]})
    with pytest.raises(SumAborted):
        simulation.run()
    simulation.request = make_request(attempt=1)
    simulation.fails, simulation.failed = {}, set()
    assert np.array_equal(simulation.run(), simulation.plain_sum(simulation.names))


def test_a_ring_of_many_devices_sums_exactly_under_the_usual_policy():
    simulation = Simulation(
        100,
        policy=DevicePolicy(),
        terms={"degree": 70, "threshold": 46},
        fails={
            "upload": [f"device-{index:03d}" for index in range(5, 100, 20)],
            "unmask": [f"device-{index:03d}" for index in range(6, 100, 20)],
        },
    )
    assert np.array_equal(simulation.run(), simulation.plain_sum(simulation.server.survivors))
    assert not any(simulation.refusals.values())


def test_the_next_keys_come_with_the_shares_of_this_sum():
    simulation = Simulation(5, next=make_request(round=4))
    simulation.run()
    for round_number in (5, 6):
        replies = simulation.replies["unmask"]
        simulation.replies["offer"] = {name: reply.offer for name, reply in replies.items()}
        simulation.request, simulation.next = simulation.next, make_request(round=round_number)
        for stage in STAGES[1:]:
            simulation.run_stage(stage)
        total = simulation.server.finish()
        assert np.array_equal(total, simulation.plain_sum(simulation.names))


def test_offers_for_training_and_for_evaluation_wait_side_by_side():
    simulation = Simulation(5)
    simulation.run_to("offer")
    evaluation = Simulation(5, request=make_request(purpose="evaluate"))
    evaluation.register, evaluation.devices = simulation.register, simulation.devices
    assert np.array_equal(evaluation.run(), evaluation.plain_sum(evaluation.names))
    for stage in STAGES[1:]:
        simulation.run_stage(stage)
    assert np.array_equal(simulation.server.finish(), simulation.plain_sum(simulation.names))


def test_a_masked_vector_looks_nothing_like_the_vector():
    simulation = Simulation(5, size=20_000)
    simulation.run()
    for vector, masked in simulation.vectors.values():
        correlation = np.corrcoef(vector.astype(float), masked.astype(float))[0, 1]
        assert abs(correlation) < 5 / np.sqrt(len(vector))


def test_the_aggregator_keeps_no_vector_that_it_has_added():
    simulation = Simulation(5)
    simulation.run_to("upload")
    server = simulation.server
    again = Simulation(5)
    again.run_to("share")
    again.ask("upload")
    name = again.names[0]
    reply = again.deliver("upload", name, again.requests["upload"][name])
    vector = again.vectors[name][1].copy()
    again.server.receive_vector(name, reply, vector)
    watched = weakref.ref(vector)
    del vector
    gc.collect()
    assert watched() is None
    assert server.survivors == tuple(simulation.names)


def test_steps_out_of_order_are_a_mistake_of_the_caller():
    simulation = Simulation(5)
    simulation.run_to("share")
    server = simulation.server
    for step in (server.close_uploads, server.close_signatures, server.finish):
        with pytest.raises(FedspkError, match="order"):
            step()
    server.close_sharing()
    with pytest.raises(FedspkError, match="order"):
        server.close_sharing()
