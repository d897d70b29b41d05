from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from fedspk.errors import FedspkError
from fedspk.secagg.parameters import (
    BLAME_BITS,
    choose_graph,
    fewest_survivors,
    find_degree,
    full_graph,
    is_safe,
    most_corrupt,
)


def exposed(devices: int, degree: int, threshold: int, corrupt: float) -> float:
    """Bound the probability that some device has so many corrupt neighbours that 2t <= k + c."""
    tail = hypergeom.sf(2 * threshold - degree - 1, devices - 1, int(corrupt * devices), degree)
    return float(devices * tail)


def cut(devices: int, degree: int, threshold: int, corrupt: float) -> float:
    """Bound the probability that both ends of an arc have t <= k/2 + corrupt ones outside it."""
    corrupt_devices, half = int(corrupt * devices), degree // 2
    tail = hypergeom.sf(threshold - half - 1, devices - 1, corrupt_devices, half)
    return float((devices * tail) ** 2)


def unavailable(devices: int, degree: int, threshold: int, dropouts: float) -> float:
    """Bound the probability that some device is left with fewer than t neighbours."""
    alive = devices - 1 - int(dropouts * devices)
    return float(devices * hypergeom.cdf(threshold - 1, devices - 1, alive, degree))


def least_degree(devices: int, corrupt: float, dropouts: float) -> int:
    """Return the least k for the semi-malicious condition alone, at 2^-40 and 2^-20."""
    for degree in range(2, devices - 1, 2):
        for threshold in range(degree // 2 + 1, degree + 1):
            if exposed(devices, degree, threshold, corrupt) <= 2.0**-40:
                if unavailable(devices, degree, threshold, dropouts) <= 2.0**-20:
                    return degree
                break
    raise AssertionError


PUBLISHED = {(100, 0.1): 32, (100, 0.3): 72, (1000, 0.1): 96, (1000, 0.3): 414, (10_000, 0.1): 122}
"""Semi-malicious degrees for 10 % corrupt devices, by (devices, dropouts): google-parfait."""


@pytest.mark.parametrize(("devices", "dropouts"), PUBLISHED)
def test_the_bounds_give_the_published_degrees(devices, dropouts):
    assert least_degree(devices, 0.1, dropouts) == PUBLISHED[devices, dropouts]


@pytest.mark.parametrize(("devices", "dropouts"), PUBLISHED)
def test_more_than_the_published_degree_pays_for_rings_that_can_be_tried(devices, dropouts):
    degree, threshold = find_degree(devices, 0.1, dropouts)
    assert exposed(devices, degree, threshold, 0.1) <= 2.0**-64
    assert cut(devices, degree, threshold, 0.1) <= 2.0**-64
    assert unavailable(devices, degree, threshold, dropouts) <= 2.0**-20
    assert PUBLISHED[devices, dropouts] <= degree <= 1.35 * PUBLISHED[devices, dropouts]


@pytest.mark.parametrize("devices", [201, 300, 1000])
def test_a_safe_threshold_is_the_least_safe_one(devices):
    degree, threshold = find_degree(devices, 0.1, 0.1)
    assert is_safe(devices, degree, threshold, 0.1)
    assert not is_safe(devices, degree, threshold - 1, 0.1)


@pytest.mark.parametrize("devices", [201, 300, 1000])
def test_no_smaller_degree_does(devices):
    degree, _ = find_degree(devices, 0.1, 0.1)
    smaller = degree - 2
    for threshold in range(smaller // 2 + 1, smaller + 1):
        risk = exposed(devices, smaller, threshold, 0.1) + cut(devices, smaller, threshold, 0.1)
        assert risk > 2.0**-64 or unavailable(devices, smaller, threshold, 0.1) > 2.0**-20


@given(st.integers(1, 2000), st.floats(0, 0.33))
def test_the_full_graph_is_safe_below_a_third_and_outlives_as_many(devices, corrupt):
    degree, threshold = full_graph(devices)
    assert is_safe(devices, degree, threshold, corrupt)
    assert threshold <= devices - (devices - 1) // 3


@given(st.integers(1, 300), st.floats(0, 0.33))
def test_in_the_full_graph_two_thresholds_never_fit_among_the_honest(devices, corrupt):
    bad = int(corrupt * devices)
    for threshold in range(devices + 2):
        safe = is_safe(devices, devices - 1, threshold, corrupt)
        assert safe == ((devices - bad) < 2 * (threshold - bad) and threshold <= devices)


UNSAFE = {
    "one share is enough": (1000, 120, 1),
    "half the shares": (1000, 120, 60),
    "no neighbours": (1000, 0, 1),
    "odd degree": (1000, 121, 100),
    "two neighbours": (1000, 2, 2),
    "more shares than there are holders": (1000, 120, 121),
    "more neighbours than devices": (1000, 1000, 900),
    "negative": (1000, -2, -1),
    "full graph, half": (10, 9, 5),
    "full graph, too many": (10, 9, 11),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_parameters_are_told(case):
    assert not is_safe(*UNSAFE[case], 0.1)


def test_a_ring_suffices_above_the_limit_only():
    choice = {"full_graph_limit": 200, "corrupt_fraction": 0.1, "dropout_fraction": 0.1}
    assert choose_graph(200, **choice) == full_graph(200)
    assert choose_graph(201, **choice).degree < 200


def test_where_no_ring_suffices_the_graph_is_full():
    choice = {"full_graph_limit": 10, "corrupt_fraction": 0.3, "dropout_fraction": 0.3}
    assert choose_graph(100, **choice) == full_graph(100)
    with pytest.raises(FedspkError, match="sparser"):
        find_degree(100, 0.3, 0.3)


def test_a_sum_needs_the_share_of_its_cohort_that_the_threshold_is_of_the_holders():
    assert fewest_survivors(100, 99, 67) == 67
    assert fewest_survivors(1000, 120, 87) == 725


@pytest.mark.parametrize(("devices", "degree"), [(300, 60), (1000, 120)])
def test_hardly_any_device_of_a_ring_has_more_corrupt_holders_than_foreseen(devices, degree):
    most = most_corrupt(devices, degree, 0.1)
    chances = hypergeom(devices - 1, devices // 10, degree)
    assert devices * chances.sf(most) <= 2.0**-BLAME_BITS < devices * chances.sf(most - 1)


def test_all_corrupt_devices_hold_shares_in_a_full_graph_and_none_where_there_are_none():
    assert most_corrupt(100, 99, 0.1) == 10
    assert most_corrupt(1000, 120, 0.0) == 0
