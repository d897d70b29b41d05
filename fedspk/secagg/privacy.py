"""Differential privacy of a secure sum: the distributed discrete Gaussian mechanism.

Every device adds a share of the noise to its integers before it masks them, so that nobody ever
sees a sum without noise (Kairouz, Liu and Steinke 2021). The shares are sized for the fewest honest
devices that a sum can hold: the others may fail, or subtract what they added.

>>> privacy = PrivacyConfig(noise_multiplier=1.0, epsilon=8.0, delta=1e-5)
>>> honest = honest_shares(clients=100, survivors=67, corrupt_fraction=0.1)
>>> plan = plan_noise(
...     privacy, size=512, clients=100, honest=honest, precision_bits=24, norm=1.0
... )
>>> plan.quantiser.precision_bits, round(plan.scale)
(24, 1111098)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.secagg.config import PrivacyConfig
from fedspk.secagg.discrete_gaussian import LARGEST_SCALE, DiscreteGaussian, largest_sum
from fedspk.secagg.masks import MaskedVector
from fedspk.secagg.quantise import MINIMUM_PRECISION, Quantiser

NEGLIGIBLE = 2.0**-40
"""The probability that a noised sum wraps, and what its noise costs beyond a Gaussian's epsilon."""


@dataclass(frozen=True)
class NoisePlan:
    """How the devices of a cohort encode their updates, and how much noise each of them adds.

    quantiser: without weights and counters, which no noise would cover.
    scale: of one device's noise, in integer steps; it stands in the terms of the sum.
    """

    quantiser: Quantiser
    scale: float


def encode_noised(
    quantiser: Quantiser,
    scale: float,
    delta: npt.NDArray[np.float32],
    rounding: bytes,
    key: bytes | None = None,
) -> MaskedVector:
    """Return a device's update as noised integers (size,) modulo 2^modulus_bits.

    Args:
        quantiser, scale: of a `NoisePlan`.
        delta: (size,) float32; clipped here.
        rounding: 32 bytes that decide the rounding; they need not be secret.
        key: 32 secret bytes that decide the noise, for tests; None draws them.

    Raises:
        FedspkError: the update has another length or is not finite.
    """
    noise = DiscreteGaussian(scale, key).draw(quantiser.size)
    return quantiser.encode_noised(delta, rounding, noise)


def honest_shares(clients: int, survivors: int, corrupt_fraction: float) -> int:
    """Return how many shares of honest noise every sum holds at least.

    Args:
        clients: devices in the cohort.
        survivors: fewest of them with which the devices let a sum be unmasked.
        corrupt_fraction: share of the cohort that may be dishonest.

    Raises:
        FedspkError: there might be none.
    """
    shares = survivors - math.floor(corrupt_fraction * clients)
    if shares < 1:
        raise FedspkError(
            f"A sum over {survivors} of {clients} devices may hold no honest noise when "
            f"corrupt_fraction is {corrupt_fraction:g}; make cohort_size larger."
        )
    return shares


def plan_noise(
    privacy: PrivacyConfig,
    *,
    size: int,
    clients: int,
    honest: int,
    precision_bits: int,
    norm: float,
) -> NoisePlan:
    """Return the finest encoding, of at most `precision_bits`, in which sum and noise never wrap.

    "Never" leaves a probability of 2^-40. Aggregator and devices compute the same plan from the
    run's configuration.

    Raises:
        FedspkError: no encoding holds the noise, or the noise is so small that its steps show.
    """
    widest = Quantiser.for_cohort(
        size=size,
        counters=0,
        clients=clients,
        precision_bits=precision_bits,
        norm=norm,
        maximum_weight=1,
    )
    for bits in range(widest.precision_bits, MINIMUM_PRECISION - 1, -1):
        plain = replace(widest, precision_bits=bits)
        scale = share_scale(privacy.noise_multiplier, plain, honest)
        if scale > LARGEST_SCALE:
            continue
        margin = noise_margin(scale, clients, size)
        if clients * plain.levels + margin < 2**31:
            _require_smooth(scale, honest, size)
            quantiser = Quantiser.for_cohort(
                size=size,
                counters=0,
                clients=clients,
                precision_bits=bits,
                norm=norm,
                maximum_weight=1,
                noise_margin=margin,
            )
            return NoisePlan(quantiser, scale)
    raise FedspkError(
        f"Noise of {privacy.noise_multiplier:g} times an update of {size} numbers leaves fewer "
        f"than {MINIMUM_PRECISION} bits for the updates of {clients} devices; lower "
        "noise_multiplier."
    )


def share_scale(noise_multiplier: float, quantiser: Quantiser, honest: int) -> float:
    """Return the scale of one device's noise, in integer steps.

    So many honest shares together have noise_multiplier * sensitivity.
    """
    return noise_multiplier * quantiser.sensitivity / math.sqrt(honest)


def noise_margin(scale: float, clients: int, size: int) -> int:
    """Return what no coordinate of a sum's noise exceeds in absolute value, but for 2^-40.

    Raises:
        FedspkError: the scale is not in (0, 2^32].
    """
    if not 0 < scale <= LARGEST_SCALE:
        raise FedspkError(f"noise of scale {scale:g} cannot be drawn; choose one below 2^32.")
    return largest_sum(scale, clients, size, NEGLIGIBLE)


def _require_smooth(scale: float, shares: int, size: int) -> None:
    """Check that a sum of discrete Gaussians is as private as one of the same variance.

    Its Renyi divergence of any order is larger by at most tau * size, where tau = 10
    sum_{k < shares} exp(-2 pi^2 scale^2 k / (k + 1)) (Kairouz et al. 2021, proposition 14), and
    k / (k + 1) is at least a half.
    """
    tau = 10 * (shares - 1) * math.exp(-((math.pi * scale) ** 2))
    if tau * size > NEGLIGIBLE:
        raise FedspkError(
            f"Noise of {scale:.2g} steps a device is too coarse to be private; raise "
            "noise_multiplier or precision_bits."
        )
