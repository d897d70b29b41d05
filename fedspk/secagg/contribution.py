"""What a device puts into a secure sum, and what the sum then says: an update and figures.

The terms of a sum follow from the run's configuration, so that a device can compute them itself
and an aggregator cannot choose them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from fedspk.secagg.config import SecureConfig
from fedspk.secagg.masks import MaskedVector
from fedspk.secagg.messages import PROTOCOL_VERSION, OfferRequest, Purpose, Terms
from fedspk.secagg.parameters import choose_graph, fewest_survivors
from fedspk.secagg.privacy import encode_noised, honest_shares, plan_noise
from fedspk.secagg.quantise import COUNTER_BITS, Quantiser, clip_scale

_COUNTED: dict[Purpose, dict[str, float]] = {
    "train": {"weight": 1, "loss": 1e6, "steps": 1, "seconds": 1e3, "clipped": 1},
    "evaluate": {"examples": 1, "loss": 1e6, "seconds": 1e3},
}
"""The figures that travel as counters, and how many of the counter's units make one."""


@dataclass(frozen=True)
class Total:
    """A sum over the devices that remained.

    values: (size,) float64, the sum of weight times clipped update.
    figures: the sums of the figures; none where they would tell what the noise hides.
    """

    values: npt.NDArray[np.float64]
    figures: Mapping[str, float]


def sum_terms(
    secure: SecureConfig,
    instance: OfferRequest,
    *,
    cohort: int,
    model: str,
    config: str,
    size: int,
    clients: int,
) -> Terms:
    """Return the terms of a sum.

    Args:
        secure: the run's.
        instance: which sum.
        cohort: which of the sum's cohorts.
        model: SHA-256 of what is trained or validated, in hex.
        config: SHA-256 of the run's configuration, in hex.
        size: length of an update; 0 sums figures alone.
        clients: devices of the cohort.

    Raises:
        FedspkError: so many devices, or the noise, leave no room for the update.
    """
    degree, threshold = choose_graph(
        clients,
        full_graph_limit=secure.full_graph_limit,
        corrupt_fraction=secure.corrupt_fraction,
        dropout_fraction=secure.dropout_fraction,
    )
    quantiser, noise_scale = _encoding(secure, instance.purpose, size, clients, degree, threshold)
    return Terms(
        version=PROTOCOL_VERSION,
        run=instance.run,
        purpose=instance.purpose,
        round=instance.round,
        attempt=instance.attempt,
        cohort=cohort,
        model=model,
        config=config,
        size=size,
        counters=quantiser.counters,
        precision_bits=quantiser.precision_bits,
        modulus_bits=32 if quantiser.modulus_bits == 32 else 16,
        norm=quantiser.norm,
        maximum_weight=quantiser.maximum_weight,
        noise_scale=noise_scale,
        clients=clients,
        degree=degree,
        threshold=threshold,
    )


def rounding_key(seed: int, purpose: Purpose, device: str, round_number: int) -> bytes:
    """Return the 32 bytes that decide a device's stochastic rounding: a run can be repeated."""
    return sha256(f"{seed} rounding {purpose} {device} {round_number}".encode()).digest()


def encode_contribution(
    terms: Terms, delta: npt.NDArray[np.float32], figures: Mapping[str, float], rounding: bytes
) -> MaskedVector:
    """Return a device's vector for the sum of these terms, not masked yet.

    Args:
        terms: of the sum.
        delta: (size,) float32; scaled down to the terms' norm.
        figures: by name, none negative: the "weight" of the update, and what else is counted.
        rounding: 32 bytes, see `rounding_key`.

    Raises:
        FedspkError: the update does not fit the terms or is not finite.
    """
    quantiser = terms.quantiser
    if terms.noise_scale > 0:
        return encode_noised(quantiser, terms.noise_scale, delta, rounding)
    weight = min(int(figures.get("weight", 1)), terms.maximum_weight)
    clipped = clip_scale(delta, terms.norm) < 1
    counted = {**figures, "weight": weight, "clipped": clipped}
    counters = [
        min(round(counted[name] * unit), (1 << COUNTER_BITS) - 1)
        for name, unit in _COUNTED[terms.purpose].items()
    ]
    return quantiser.encode(delta, weight, counters, rounding)


def decode_total(terms: Terms, total: MaskedVector, survivors: int) -> Total:
    """Return what the sum over so many devices says.

    Raises:
        FedspkError: it is out of range: a device did not keep to the protocol.
    """
    decoded = terms.quantiser.decode(total, survivors)
    if terms.noise_scale > 0:
        return Total(decoded.values, {})
    units = _COUNTED[terms.purpose]
    figures = {
        name: counter / unit
        for (name, unit), counter in zip(units.items(), decoded.counters, strict=True)
    }
    return Total(decoded.values, figures)


@lru_cache(maxsize=64)
def _encoding(
    secure: SecureConfig, purpose: Purpose, size: int, clients: int, degree: int, threshold: int
) -> tuple[Quantiser, float]:
    """Return how a cohort encodes, and the scale of each device's noise."""
    if secure.privacy is not None and purpose == "train":
        survivors = fewest_survivors(clients, degree, threshold)
        plan = plan_noise(
            secure.privacy,
            size=size,
            clients=clients,
            honest=honest_shares(clients, survivors, secure.corrupt_fraction),
            precision_bits=secure.precision_bits,
            norm=secure.norm,
        )
        return plan.quantiser, plan.scale
    quantiser = Quantiser.for_cohort(
        size=size,
        counters=len(_COUNTED[purpose]),
        clients=clients,
        precision_bits=secure.precision_bits,
        norm=secure.norm,
        maximum_weight=secure.maximum_weight if purpose == "train" else 1,
    )
    return quantiser, 0.0
