from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.rounds import (
    Best,
    WeightedMean,
    mean_loss,
    require_replies,
    sample,
    turn,
    with_newcomers,
)
from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig

_NAMES = [f"device-{k:04d}" for k in range(10)]


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), st.floats(1, 9)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_weighted_mean_is_that_of_algorithm_1(updates):
    mean = WeightedMean(3)
    for delta, weight in updates:
        mean.add(np.array(delta, np.float32), weight)
    deltas = np.array([delta for delta, _ in updates])
    weights = np.array([weight for _, weight in updates])
    expected = (weights[:, None] * deltas).sum(0) / weights.sum()
    np.testing.assert_allclose(mean.mean(), expected, atol=1e-9)


def test_a_long_vector_is_added_whole():
    vector = np.random.default_rng(0).normal(size=100_001).astype(np.float32)
    mean = WeightedMean(vector.size)
    mean.add(vector, 3.0)
    mean.add(-vector, 1.0)
    np.testing.assert_allclose(mean.mean(), 0.5 * vector, rtol=1e-12)


@pytest.mark.parametrize(
    ("delta", "weight", "sentence"),
    [
        ([1.0, 2.0], 1.0, "2 numbers and the model 3"),
        ([1.0, np.nan, 0.0], 1.0, "not finite"),
        ([np.inf, -np.inf, 0.0], 1.0, "not finite"),
        ([1.0, 1.0, 1.0], 0.0, "not positive"),
        ([1.0, 1.0, 1.0], float("nan"), "not positive"),
    ],
)
def test_a_bad_update_is_refused_and_leaves_no_trace(delta, weight, sentence):
    mean = WeightedMean(3)
    mean.add(np.ones(3, np.float32), 2.0)
    with pytest.raises(FedspkError, match=sentence):
        mean.add(np.array(delta, np.float32), weight)
    np.testing.assert_array_equal(mean.mean(), np.ones(3))


def test_an_empty_mean_is_an_error():
    with pytest.raises(FedspkError, match="no update"):
        WeightedMean(3).mean()


def test_sampling_depends_on_seed_and_round_and_not_on_the_order_of_names():
    config = RunConfig().changed(clients_per_round=4, seed=3)
    first = sample(_NAMES, config, 1)
    assert len(first) == 4
    assert first == sample(_NAMES[::-1], config, 1)
    assert any(first != sample(_NAMES, config, r) for r in range(2, 6))
    assert any(first != sample(_NAMES, config.changed(seed=s), 1) for s in range(4, 8))


@pytest.mark.parametrize("wanted", [0, 10, 99])
def test_all_devices_take_part_when_that_is_asked(wanted):
    assert sample(_NAMES, RunConfig().changed(clients_per_round=wanted), 1) == _NAMES


@pytest.mark.parametrize(("fraction", "expected"), [(0.3, 3), (0.01, 1), (1.0, 10)])
def test_a_fraction_of_the_devices_takes_part_and_at_least_one(fraction, expected):
    config = RunConfig().changed(client_fraction=fraction)
    assert len(sample(_NAMES, config, 1)) == expected
    assert len(sample(_NAMES, config.changed(clients_per_round=4), 1)) == 4


@given(st.integers(1, 60), st.integers(0, 12), st.integers(0, 3), st.lists(st.integers(1, 30)))
def test_every_device_is_in_one_batch_and_nobody_moves(first, wanted, seed, arrivals):
    config = RunConfig().changed(clients_per_round=wanted, seed=seed)
    devices = [f"device-{k}" for k in range(first)]
    batches = with_newcomers((), devices, config)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == max(1, first // (wanted or first))
    for arriving in arrivals:
        before = batches
        devices += [f"device-{len(devices) + k}" for k in range(arriving)]
        batches = with_newcomers(batches, devices[::-1], config)
        assert all(new[: len(old)] == old for old, new in zip(before, batches, strict=False))
        assert sorted(device for batch in batches for device in batch) == sorted(devices)


def test_a_few_newcomers_join_the_smallest_batches_and_many_make_their_own():
    config = RunConfig().changed(clients_per_round=3)
    batches = with_newcomers((("a", "b", "c", "d"), ("e", "f", "g")), ["a", "h", "i"], config)
    assert batches == (("a", "b", "c", "d", "i"), ("e", "f", "g", "h"))
    more = with_newcomers(batches, ["j", "k", "l", "m"], config)
    assert more[:2] == batches
    assert sorted(more[2]) == ["j", "k", "l", "m"]


def test_batches_take_turns_and_one_that_is_away_is_passed_over():
    batches = (("a", "b"), ("c",), ("d",))
    everybody = ["a", "b", "c", "d"]
    assert [turn(batches, everybody, r) for r in range(1, 5)] == [*batches, batches[0]]
    assert [turn(batches, ["b", "d"], r) for r in range(1, 4)] == [
        batches[0],
        batches[2],
        batches[2],
    ]
    assert turn(batches, ["a"], 2) == batches[0]


def test_too_few_replies_are_one_sentence_with_the_first_reason():
    config = RunConfig().changed(minimum_reply_fraction=0.5)
    require_replies(3, 5, config, 2, ["lost"])
    with pytest.raises(FedspkError, match=r"2 of 5 devices answered and 3 are needed.*lost"):
        require_replies(2, 5, config, 2, ["lost"])
    with pytest.raises(FedspkError, match="no reply in time"):
        require_replies(0, 1, config, 2, [])


def test_the_best_round_is_the_first_of_the_lowest_loss():
    best = Best()
    for number, loss in enumerate([3.0, 2.0, 2.0, None, 2.5]):
        best = best.after(number, loss)
    assert (best.round, best.loss, best.evaluations_since) == (1, 2.0, 3)
    assert best.exhausted(3)
    assert not best.exhausted(4)
    assert not best.exhausted(0)


def test_the_mean_loss_skips_what_is_not_a_number():
    assert mean_loss([1.0, float("nan"), 3.0]) == 2.0
    assert mean_loss([]) is None
