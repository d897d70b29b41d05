from __future__ import annotations

import gc
import itertools
import weakref
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_simulator import STAGES, Simulation, make_request

from fedspk.errors import FedspkError
from fedspk.secagg.client import DevicePolicy
from fedspk.secagg.errors import SumAborted
from fedspk.secagg.graph import Graph
from fedspk.secagg.messages import sum_context
from fedspk.secagg.parameters import is_safe


@st.composite
def simulations(draw: st.DrawFn, clients: st.SearchStrategy[int], ring: bool) -> Simulation:
    """Draw a cohort, its graph, threshold and modulus, and at which stage each device fails.

    Graph and threshold are among those that the devices' policy allows.
    """
    count = draw(clients)
    names = [f"device-{index:03d}" for index in range(count)]
    failing = draw(st.integers(0, draw(st.sampled_from([2, count // 3, count]))))
    fates = {name: draw(st.sampled_from(STAGES)) for name in draw(st.permutations(names))[:failing]}
    cohort = count - list(fates.values()).count("offer")
    corrupt = draw(st.sampled_from([0.0, 0.05, 0.1, 0.3]))
    least = {
        degree: next(t for t in range(1, cohort + 1) if is_safe(cohort, degree, t, corrupt))
        for degree in (range(2, cohort - 1, 2) if ring else [cohort - 1] if cohort > 1 else [])
        if is_safe(cohort, degree, degree if ring else cohort, corrupt)
    }
    terms = {}
    if least:
        degree = draw(st.sampled_from(sorted(least)))
        threshold = draw(
            st.just(least[degree]) | st.integers(least[degree], degree if ring else cohort)
        )
        terms = {"degree": degree, "threshold": threshold}
        if draw(st.booleans()):
            terms |= {"precision_bits": 8, "modulus_bits": 16}
    return Simulation(
        count,
        size=draw(st.integers(1, 40)),
        policy=DevicePolicy(minimum_cohort=2, corrupt_fraction=corrupt if least else 0.0),
        terms=terms,
        fails={stage: [name for name in names if fates.get(name) == stage] for stage in STAGES},
        restarts=draw(st.booleans()),
    )


def foretold_survivors(simulation: Simulation) -> set[str] | None:
    """Return the devices that the sum must be over; None when it cannot be finished.

    By the rule alone: at every stage the share of the cohort that the threshold is of the holders
    must be there, and of every secret that the sum needs so many holders.
    """
    server, fails = simulation.server, simulation.fails
    if server is None:  # fewer than two offers
        return None
    terms, devices = server.terms, server.devices
    graph = Graph(terms.clients, terms.degree, sum_context(terms, server.share_request().roster))
    threshold = terms.threshold
    sharers = {i for i, name in enumerate(devices) if name not in fails["share"]}
    alive = {i for i in sharers if devices[i] not in fails["upload"]}
    signers = {i for i in alive if devices[i] not in fails["sign"]}
    voices = {i: len(signers.intersection(graph.neighbours(i))) for i in signers}
    convinced = {i for i in signers if voices[i] + graph.is_full >= threshold}
    givers = {i for i in convinced if devices[i] not in fails["unmask"]}
    masked_with = {i for i in sharers - alive if alive.intersection(graph.neighbours(i))}

    def hold(owners: set[int], holders: set[int]) -> bool:
        return all(len(holders.intersection(graph.holders(i))) >= threshold for i in owners)

    holders = terms.clients if graph.is_full else terms.degree
    can_finish = (
        min(len(sharers), len(alive)) * holders >= threshold * terms.clients
        and hold(sharers, sharers)
        and all(hold(alive | masked_with, group) for group in (alive, convinced, givers))
    )
    return {devices[i] for i in alive} if can_finish else None


@pytest.mark.parametrize(
    ("clients", "ring", "examples"),
    [(st.integers(2, 12), False, 150), (st.integers(8, 40), True, 60)],
    ids=["full", "ring"],
)
def test_the_sum_is_finished_and_exact_just_when_enough_remain(clients, ring, examples):
    outcomes = Counter()

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(simulations(clients, ring))
    def check(simulation):
        try:
            total = simulation.run()
        except SumAborted:
            total = None
        assert not any(simulation.refusals.values())
        foretold = foretold_survivors(simulation)
        assert (total is None) == (foretold is None)
        if total is not None:
            assert set(simulation.server.survivors) == foretold
            assert np.array_equal(total, simulation.plain_sum(sorted(foretold)))
        failed = any(simulation.fails[stage] for stage in STAGES[1:])
        outcomes[total is not None, failed, simulation.policy.corrupt_fraction > 0] += 1

    check()
    for failed, corrupt in itertools.product([False, True], repeat=2):
        assert outcomes[True, failed, corrupt] >= 2
    assert outcomes[False, True, True] >= 2


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
