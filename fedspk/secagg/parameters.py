"""How many neighbours a device masks with, and how many of its shares it takes to recover a secret.

With `c` the corrupt devices among the holders of one device's shares, `k` of them, the threshold
`t` must hold 2t > k + c: the honest holders give one kind of share each, so an aggregator cannot
collect t shares of both (Bonawitz et al. 2017, section 6; Bell et al. 2020, the semi-malicious
condition).

In the k-regular graph a part of the ring must not be summed apart either. A holder helps to unmask
a device only if it has masked with it and that one, by its proof, with the holder; a holder whose
own masks are given away does not help at all, since most of its neighbours have signed that it
failed. So of the last device before a cut only the holders on its inner side help, k/2 of them, and
the corrupt ones on the outer side: t > k/2 + c' forbids the cut, whatever the aggregator tells to
whom. An arc has two ends: its isolation takes two such accidents.

The ring is drawn by hashing what the devices offered, so an aggregator can try many offers of its
corrupt devices: the accidents are bounded by 2^-64 for one drawing, not by the 2^-40 that suffices
where it cannot try.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError

SECURITY_BITS = 64
"""A ring on which a device can be exposed or an arc cut off is drawn with probability 2^-this."""

AVAILABILITY_BITS = 20
"""A sum fails with probability 2^-this when as many devices fail as was foreseen."""

BLAME_BITS = 40
"""More of a device's holders are corrupt than `most_corrupt` says with probability 2^-this."""

_Probabilities: TypeAlias = npt.NDArray[np.float64]


class GraphParameters(NamedTuple):
    """The neighbours of a device, and the shares that recover one of its secrets.

    `degree` = devices - 1 is the full graph, in which a device also holds a share of its own.
    """

    degree: int
    threshold: int


def choose_graph(
    devices: int, *, full_graph_limit: int, corrupt_fraction: float, dropout_fraction: float
) -> GraphParameters:
    """Return the full graph up to the limit, above it the smallest k-regular graph that will do."""
    if devices > full_graph_limit:
        try:
            return find_degree(devices, corrupt_fraction, dropout_fraction)
        except FedspkError:
            pass  # too few devices, or too many that fail, for any sparser graph
    return full_graph(devices)


def full_graph(devices: int) -> GraphParameters:
    """Return t = floor(2n/3) + 1: safe if fewer than 1/3 are corrupt, and 1/3 may fail."""
    return GraphParameters(devices - 1, 2 * devices // 3 + 1)


@lru_cache
def find_degree(devices: int, corrupt_fraction: float, dropout_fraction: float) -> GraphParameters:
    """Return the k-regular graph of least degree that is safe and outlives the dropouts.

    Raises:
        FedspkError: none is sparser than the full graph.
    """
    alive = devices - 1 - int(dropout_fraction * devices)
    for degree in range(2, devices - 1, 2):
        risks = _risks(devices, degree, corrupt_fraction)
        threshold = int(np.argmax(risks <= 2.0**-SECURITY_BITS))  # risks fall as t grows
        if threshold > 0:
            too_few = _hypergeometric(devices - 1, max(alive, 0), degree)[:threshold].sum()
            if devices * too_few <= 2.0**-AVAILABILITY_BITS:
                return GraphParameters(degree, threshold)
    raise FedspkError(
        f"{devices} devices of which {corrupt_fraction:.0%} are corrupt and {dropout_fraction:.0%} "
        "fail have no graph sparser than the full one."
    )


@lru_cache
def is_safe(devices: int, degree: int, threshold: int, corrupt_fraction: float) -> bool:
    """Whether a device may join: no device can be exposed and no arc cut off; see the module."""
    if degree == devices - 1:
        corrupt = int(corrupt_fraction * devices)
        return threshold <= devices and 2 * threshold > devices + corrupt
    if not (2 <= degree < devices - 1 and degree % 2 == 0 and 0 < threshold <= degree):
        return False
    risk = _risks(devices, degree, corrupt_fraction)[threshold]
    return bool(risk <= 2.0**-SECURITY_BITS)


def most_corrupt(devices: int, degree: int, corrupt_fraction: float) -> int:
    """Return how many holders of one device's shares may be corrupt, whichever device it is."""
    corrupt = int(corrupt_fraction * devices)
    if degree == devices - 1:
        return corrupt
    risks = devices * _at_least(devices - 1, corrupt, degree)
    return int(np.count_nonzero(risks > 2.0**-BLAME_BITS)) - 1


def fewest_survivors(devices: int, degree: int, threshold: int) -> int:
    """Return how many uploads a sum needs: the share of the cohort that t is of the holders."""
    holders = devices if degree == devices - 1 else degree
    return -(-threshold * devices // holders)


def _risks(devices: int, degree: int, corrupt_fraction: float) -> _Probabilities:
    """Return, for each threshold 0 .. degree, a bound on the probability of an accident."""
    corrupt = int(corrupt_fraction * devices)
    excess = np.arange(degree // 2 + 1)  # t - k/2
    exposed = _at_least(devices - 1, corrupt, degree)[2 * excess]
    cut = _at_least(devices - 1, corrupt, degree // 2)[excess]
    risks = devices * exposed + (devices * cut) ** 2
    return np.concatenate([np.ones(degree // 2), risks])


def _at_least(population: int, marked: int, draws: int) -> _Probabilities:
    """Return the probabilities of at least 0 .. draws marked ones."""
    tails: _Probabilities = np.cumsum(_hypergeometric(population, marked, draws)[::-1])[::-1]
    return tails


def _hypergeometric(population: int, marked: int, draws: int) -> _Probabilities:
    """Return the probabilities of 0 .. draws marked ones among `draws` of a population."""
    logs = _log_factorials(population)
    hits = np.arange(max(0, draws - (population - marked)), min(draws, marked) + 1)

    def choose(of: int, some: npt.NDArray[np.int64]) -> _Probabilities:
        ways: _Probabilities = logs[of] - logs[some] - logs[of - some]
        return ways

    ways = choose(marked, hits) + choose(population - marked, draws - hits)
    probabilities = np.zeros(draws + 1)
    probabilities[hits] = np.exp(ways - choose(population, np.array(draws)))
    return probabilities


@lru_cache(maxsize=2)
def _log_factorials(largest: int) -> _Probabilities:
    return np.concatenate([np.zeros(1), np.cumsum(np.log(np.arange(1, largest + 1)))])
