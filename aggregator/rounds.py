"""The arithmetic of a round, with no input or output: who is asked, the mean, early stopping.

Algorithm 1 of Woubie and Bäckström 2021: the devices return deltas d_k and weights n_k, and the
server takes w' = w + eta sum_k(n_k d_k) / sum_k(n_k).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from aggregator.optimisers import Float32Array, Float64Array
from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig
from fedspk.seeds import derive, numpy_generator

Batches: TypeAlias = tuple[tuple[str, ...], ...]

_BLOCK = 1 << 15  # numbers added at a time: stays in the processor's cache


class RoundFailed(FedspkError):  # noqa: N818 - named after the event
    """What a round asked of the devices came to nothing; the next round may go better."""


class WeightedMean:
    """The running sum of n_k d_k: one delta in memory at a time.

    The sum is in float64 and in the order of the calls; call in one fixed order (the devices'
    names) and the result has the same bits, whoever computed the deltas and when.

    Args:
        size: length of a delta.
    """

    def __init__(self, size: int) -> None:
        self._sum: Float64Array = np.zeros(size)
        self._scratch: Float64Array = np.empty(min(size, _BLOCK))
        self.weight = 0.0

    def add(self, delta: Float32Array, weight: float) -> None:
        """Add one device's delta (n,) float32.

        Raises:
            FedspkError: the delta has another length or is not finite, or the weight is not a
                positive number.
        """
        if delta.shape != self._sum.shape:
            raise FedspkError(
                f"An update has {delta.size} numbers and the model {self._sum.size}; device and "
                f"aggregator must build the same network."
            )
        if not (math.isfinite(weight) and weight > 0):
            raise FedspkError(f"An update has the weight {weight}, which is not positive.")
        if not np.isfinite(delta).all():
            raise FedspkError("An update has numbers that are not finite; lower the learning rate.")
        for start in range(0, delta.size, _BLOCK):
            block = delta[start : start + _BLOCK]
            scaled = np.multiply(block, weight, out=self._scratch[: block.size], dtype=np.float64)
            self._sum[start : start + _BLOCK] += scaled
        self.weight += weight

    def mean(self) -> Float64Array:
        """Return sum(n d) / sum(n), (n,) float64.

        Raises:
            FedspkError: nothing was added.
        """
        if self.weight == 0:
            raise FedspkError("There is no update to average.")
        return self._sum / self.weight


def sample(devices: Sequence[str], config: RunConfig, round_number: int) -> list[str]:
    """Return the devices of a round, by name: M of them, drawn by the run's seed and the round.

    Source: McMahan et al. 2017, Algorithm 1.
    """
    ordered = sorted(devices)
    wanted = _wanted(ordered, config)
    if wanted >= len(ordered):
        return ordered
    generator = np.random.default_rng(derive(config.seed, "clients", round_number))
    chosen = generator.choice(len(ordered), size=wanted, replace=False)
    return sorted(ordered[index] for index in chosen)


def with_newcomers(batches: Batches, devices: Sequence[str], config: RunConfig) -> Batches:
    """Return the batches with every device in one of them; nobody who is in one moves.

    Newcomers enough for a round of M make batches of their own, drawn by the run's seed and of
    equal size up to one device; fewer join the smallest batches.
    """
    placed = {device for batch in batches for device in batch}
    newcomers = sorted(set(devices) - placed)
    wanted = _wanted(devices, config)
    if newcomers and (not batches or len(newcomers) >= wanted):
        numpy_generator(config.seed, "batches", len(placed)).shuffle(newcomers)
        count = max(1, len(newcomers) // wanted)
        return (*batches, *(tuple(newcomers[first::count]) for first in range(count)))
    grown = list(batches)
    for device in newcomers:
        smallest = min(range(len(grown)), key=lambda index: len(grown[index]))
        grown[smallest] = (*grown[smallest], device)
    return tuple(grown)


def turn(batches: Batches, devices: Iterable[str], round_number: int) -> tuple[str, ...]:
    """Return the batch whose turn it is: the next one of which a device is there.

    All its devices are named, also those that are away: what is divided by position stays so.
    """
    there = set(devices)
    first = (round_number - 1) % len(batches)
    return next(batch for batch in (*batches[first:], *batches) if there & set(batch))


def is_due(config: RunConfig, round_number: int) -> bool:
    """Whether the devices validate the model after this round."""
    every = config.evaluate_every
    return every > 0 and (round_number % every == 0 or round_number == config.rounds)


def _wanted(devices: Sequence[str], config: RunConfig) -> int:
    """Return M: `clients_per_round` or, when that is 0, the fraction C, at least one."""
    return config.clients_per_round or max(1, round(config.client_fraction * len(devices)))


def require_replies(
    received: int, asked: int, config: RunConfig, round_number: int, reasons: Iterable[str]
) -> None:
    """Check that enough devices answered.

    Raises:
        RoundFailed: fewer than `minimum_reply_fraction` of them, at least one.
    """
    needed = max(1, math.ceil(config.minimum_reply_fraction * asked))
    if received < needed:
        reason = next(iter(reasons), "no reply in time")
        raise RoundFailed(
            f"Round {round_number}: {received} of {asked} devices answered and {needed} are "
            f"needed; the first failure: {reason.strip() or 'no reason given'}"
        )


def mean_loss(losses: Sequence[float]) -> float | None:
    """Return the mean over devices, each counting once; None when there is nothing finite."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return math.fsum(finite) / len(finite) if finite else None


@dataclass(frozen=True)
class Best:
    """The best round so far by validation loss; the rounds since that did no better."""

    round: int = 0
    loss: float | None = None
    evaluations_since: int = 0

    def after(self, round_number: int, loss: float | None) -> Best:
        """Return the standing after one more evaluation (None: it gave no number)."""
        if loss is not None and (self.loss is None or loss < self.loss):
            return Best(round_number, loss, 0)
        return Best(self.round, self.loss, self.evaluations_since + 1)

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` evaluations in a row brought nothing better (0: never)."""
        return patience > 0 and self.evaluations_since >= patience
