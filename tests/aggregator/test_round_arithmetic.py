from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.rounds import Best, WeightedMean, mean_loss, require_replies, sample
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
