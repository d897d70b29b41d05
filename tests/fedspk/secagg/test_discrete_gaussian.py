from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from fedspk.errors import FedspkError
from fedspk.secagg.discrete_gaussian import DiscreteGaussian, largest_sum

_KEY = bytes(range(32))


def _probabilities(scale, values):
    reach = math.ceil(40 * scale)
    total = np.exp(-0.5 * (np.arange(-reach, reach + 1) / scale) ** 2).sum()
    return np.exp(-0.5 * (values / scale) ** 2) / total


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.3, 47.0])
def test_draws_follow_the_discrete_gaussian(scale):
    draws = DiscreteGaussian(scale, _KEY).draw(400_000)
    reach = int(4 * scale) + 1
    values = np.arange(-reach, reach + 1)
    inside = draws[np.abs(draws) <= reach]
    counts = np.bincount(inside + reach, minlength=len(values))
    expected = _probabilities(scale, values) * len(draws)
    enough = expected >= 5
    observed = np.append(counts[enough], len(draws) - counts[enough].sum())
    rest = len(draws) - expected[enough].sum()
    assert stats.chisquare(observed, np.append(expected[enough], rest)).pvalue > 1e-3


@pytest.mark.parametrize("scale", [1e3, 2.0**20, 2.0**32])
def test_wide_draws_are_gaussian_with_the_scale_as_standard_deviation(scale):
    draws = DiscreteGaussian(scale, _KEY).draw(200_000)
    assert stats.kstest(draws / scale, "norm").pvalue > 1e-3
    assert draws.std() == pytest.approx(scale, rel=0.01)
    assert np.abs(draws).max() < 7 * scale


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.3, 17.2, 1000.5])
def test_every_probability_is_right_to_a_relative_2_to_the_minus_45(scale):
    gaussian = DiscreteGaussian(scale, _KEY)
    tails, width = gaussian._tails[::-1], gaussian._width
    blocks = tails - np.append(tails[1:], 0)
    with mpmath.workdps(40):
        for value in range(1, int(8 * scale) + 1, max(1, int(scale) // 60)):
            start = value // width * width
            ratio = math.exp((start**2 - value**2) * (0.5 / scale**2))
            drawn = mpmath.mpf(blocks[value // width]) * ratio / blocks[0]
            exact = mpmath.exp(-(mpmath.mpf(value) ** 2) / (2 * mpmath.mpf(scale) ** 2))
            assert abs(drawn / exact - 1) < 2**-45


def test_a_key_decides_the_stream_however_it_is_read():
    whole = DiscreteGaussian(10.0, _KEY).draw(30)
    assert (whole == DiscreteGaussian(10.0, _KEY).draw(30)).all()
    assert (whole[:10] == DiscreteGaussian(10.0, _KEY).draw(10)).all()
    assert (whole != DiscreteGaussian(10.0, bytes(32)).draw(30)).any()


def test_consecutive_draws_do_not_repeat():
    gaussian = DiscreteGaussian(1e6, _KEY)
    first, second = gaussian.draw(5000), gaussian.draw(5000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_without_a_key_every_stream_is_its_own():
    assert (DiscreteGaussian(1e6).draw(20) != DiscreteGaussian(1e6).draw(20)).any()


def test_nothing_may_be_drawn():
    assert DiscreteGaussian(1.0, _KEY).draw(0).shape == (0,)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 2.0**33])
def test_a_scale_that_cannot_be_drawn_is_refused(scale):
    with pytest.raises(FedspkError, match="scale"):
        DiscreteGaussian(scale)


def test_sums_stay_below_their_stated_bound():
    gaussian = DiscreteGaussian(20.0, _KEY)
    sums = sum(gaussian.draw(20_000) for _ in range(10))
    assert np.abs(sums).max() <= largest_sum(20.0, 10, 20_000, 1e-3)
    # The bound is of use: about what a Gaussian of that variance would need.
    needed = 20 * math.sqrt(10) * stats.norm.isf(1e-3 / 20_000 / 2)
    assert largest_sum(20.0, 10, 20_000, 1e-3) < 1.1 * needed
