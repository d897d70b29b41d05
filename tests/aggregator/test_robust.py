from __future__ import annotations

import numpy as np
import pytest

from aggregator.robust import combine, largest_norm, require_norm
from fedspk.errors import FedspkError

_SIZE = 40_000  # more than one block


def _cohorts(count, size=_SIZE, seed=1):
    return list(np.random.default_rng(seed).normal(size=(count, size)))


def test_mean_weighs_cohorts_by_their_weights():
    means, weights = _cohorts(3), [10.0, 1.0, 5.0]
    expected = np.average(means, axis=0, weights=weights)
    np.testing.assert_allclose(combine(means, weights, "mean"), expected, atol=1e-14)


def test_one_cohort_is_its_own_mean():
    (mean,) = _cohorts(1)
    np.testing.assert_array_equal(combine([mean], [7.0], "mean"), mean)


@pytest.mark.parametrize("count", [5, 6])
def test_median_is_coordinate_wise_and_counts_every_cohort_once(count):
    means = _cohorts(count)
    combined = combine(means, [1.0] * (count - 1) + [1000.0], "median")
    np.testing.assert_array_equal(combined, np.median(means, axis=0))


def test_trimmed_mean_drops_a_fifth_at_either_end():
    means = _cohorts(10)
    combined = combine(means, [1.0] * 10, "trimmed_mean")
    expected = np.sort(means, axis=0)[2:-2].mean(axis=0)
    np.testing.assert_allclose(combined, expected, atol=1e-14)


@pytest.mark.parametrize("combination", ["median", "trimmed_mean"])
def test_one_poisoned_cohort_of_five_cannot_carry_the_result_away(combination):
    honest = _cohorts(4)
    poisoned = np.full(_SIZE, 1e9)
    combined = combine([*honest, poisoned], [1.0] * 5, combination)
    assert (combined <= np.max(honest, axis=0)).all()
    assert (combined >= np.min(honest, axis=0)).all()
    assert combine([*honest, poisoned], [1.0] * 5, "mean").min() > 1e8


@pytest.mark.parametrize("combination", ["median", "trimmed_mean"])
def test_a_median_of_few_cohorts_is_refused(combination):
    with pytest.raises(FedspkError, match="needs 5"):
        combine(_cohorts(4, 3), [1.0] * 4, combination)


def test_no_cohort_or_a_cohort_without_weight_is_refused():
    with pytest.raises(FedspkError, match="needs 1"):
        combine([], [], "mean")
    with pytest.raises(FedspkError, match="nothing"):
        combine(_cohorts(2, 3), [1.0, 0.0], "mean")


def test_arguments_are_left_alone():
    means = _cohorts(5)
    copies = [mean.copy() for mean in means]
    for combination in ("mean", "median", "trimmed_mean"):
        combine(means, [1.0] * 5, combination)
    np.testing.assert_array_equal(means, copies)


def test_a_mean_of_clipped_updates_passes_the_norm_check():
    generator = np.random.default_rng(2)
    updates = generator.normal(size=(20, _SIZE))
    updates *= 3.0 / np.linalg.norm(updates, axis=1, keepdims=True)
    require_norm(updates.mean(axis=0), largest_norm(3.0, _SIZE))
    require_norm(np.broadcast_to(updates[0], (20, _SIZE)).mean(axis=0), largest_norm(3.0, _SIZE))


def test_rounding_and_noise_are_allowed_for():
    generator = np.random.default_rng(3)
    update = generator.normal(size=_SIZE)
    update *= 3.0 / np.linalg.norm(update)
    rounded = update + generator.uniform(-0.01, 0.01, _SIZE)
    noised = update + generator.normal(0, 0.1, _SIZE)
    require_norm(rounded, largest_norm(3.0, _SIZE, rounding_error=0.01))
    require_norm(noised, largest_norm(3.0, _SIZE, noise=0.1))
    for mean in (rounded, noised):
        with pytest.raises(FedspkError, match="left out"):
            require_norm(mean, largest_norm(3.0, _SIZE))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e100])
def test_a_mean_that_is_not_finite_or_too_long_is_refused(bad):
    mean = np.zeros(_SIZE)
    mean[-1] = bad
    with pytest.raises(FedspkError, match="left out"):
        require_norm(mean, largest_norm(1.0, _SIZE))
