"""Fixed point: a device's clipped update as integers whose sum over a cohort never wraps.

A cohort of n devices shares a modulus of 16 or 32 bits. With b bits a device, a coordinate takes
the levels -M..M, M = 2^(b-1) - 1, and b is such that n M fits the modulus as a signed number:
whatever the devices hold, the sum modulo 2^16 or 2^32 is the sum. Rounding is stochastic, so that
the errors of many devices average out (Bonawitz et al. 2019, "Federated learning with autotuned
communication-efficient secure aggregation", section 3). Counters ride at the end of the same
vector, in limbs of b - 1 bits, and come back exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.secagg.keystream import Keystream
from fedspk.secagg.masks import MaskedVector

COUNTER_BITS = 32
MINIMUM_PRECISION, MAXIMUM_PRECISION = 8, 24
# Within these ranges no factor or square that matters leaves the range of float32.
SMALLEST_NORM, LARGEST_NORM, MAXIMUM_WEIGHT = 1e-9, 1e9, 1 << 32

# Numbers worked on at a time: the scratch stays in a core's cache.
_CHUNK = 32 * 1024
# A float32 sum of so many squares is off by 2^-11 at most in any order, a norm by 2^-12.
_NORM_BLOCK = 8 * 1024
_HEADROOM = 1 - 2.0**-11
# Relative error of a float32 product with a factor rounded to float32.
_FLOAT_ERROR = 2.0**-23
# Kairouz et al. 2021, section 4.1: each rounding is kept with a chance of at least 1 - beta.
_BETA = math.exp(-0.5)

_Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DecodedSum:
    """The sum over the devices that remained.

    values: (size,) float64, the sum of weight times clipped update.
    counters: the sums of the counters.
    """

    values: npt.NDArray[np.float64]
    counters: tuple[int, ...]


@dataclass(frozen=True)
class Quantiser:
    """How the devices of one cohort turn updates into integers, and the aggregator sums back.

    size: coordinates of an update.
    counters: how many counters ride along, each below 2^32.
    clients: devices of the cohort, all of which may remain.
    precision_bits: b, 8 to 24 (float32 carries no more).
    modulus_bits: 16 or 32.
    norm: L2 norm to which every update is clipped.
    maximum_weight: an update weighs min(weight, maximum_weight).
    noise_margin: largest absolute value of the sum of all devices' noise in a coordinate.

    Raises:
        FedspkError: a field is out of range, or a sum could wrap.
    """

    size: int
    counters: int
    clients: int
    precision_bits: int
    modulus_bits: int
    norm: float
    maximum_weight: int
    noise_margin: int = 0

    def __post_init__(self) -> None:
        if min(self.size, self.counters, self.noise_margin) < 0 or self.clients < 1:
            raise FedspkError(
                "a quantiser's size, counters, clients and margin must not be negative."
            )
        if not 1 <= self.maximum_weight <= MAXIMUM_WEIGHT:
            raise FedspkError(f"the largest weight must be 1 to 2^32, not {self.maximum_weight}.")
        if not SMALLEST_NORM <= self.norm <= LARGEST_NORM:
            raise FedspkError(
                f"the norm of an update must be {SMALLEST_NORM} to {LARGEST_NORM}, not {self.norm}."
            )
        if not MINIMUM_PRECISION <= self.precision_bits <= MAXIMUM_PRECISION:
            raise FedspkError(
                f"{self.precision_bits} bits an update are not supported; use {MINIMUM_PRECISION} "
                f"to {MAXIMUM_PRECISION} bits, smaller cohorts or less noise."
            )
        if self.modulus_bits not in (16, 32):
            raise FedspkError(
                f"a modulus of {self.modulus_bits} bits is not supported; use 16 or 32."
            )
        if self._largest_sum(self.clients) >= 1 << (self.modulus_bits - 1):
            raise FedspkError(
                f"a sum over {self.clients} devices of {self.precision_bits} bits could wrap "
                f"modulo 2^{self.modulus_bits}; use fewer devices, fewer bits or less noise."
            )

    @classmethod
    def for_cohort(
        cls,
        *,
        size: int,
        counters: int,
        clients: int,
        precision_bits: int,
        norm: float,
        maximum_weight: int,
        noise_margin: int = 0,
    ) -> Self:
        """Return the quantiser that carries `precision_bits` in 16 bits, or what fits in 32.

        Raises:
            FedspkError: fewer than 8 bits fit, or an argument is out of range.
        """
        limit = min(precision_bits, _fitting_bits(32, clients, noise_margin))
        return cls(
            size=size,
            counters=counters,
            clients=clients,
            precision_bits=limit,
            modulus_bits=16 if limit <= _fitting_bits(16, clients, noise_margin) else 32,
            norm=norm,
            maximum_weight=maximum_weight,
            noise_margin=noise_margin,
        )

    @property
    def levels(self) -> int:
        """M: the largest absolute value of a coordinate of one device, before noise."""
        return (1 << (self.precision_bits - 1)) - 1

    @property
    def limbs(self) -> int:
        """Coordinates that one counter takes."""
        return -(-COUNTER_BITS // (self.precision_bits - 1))

    @property
    def length(self) -> int:
        """Coordinates of an encoded vector: the update's, then the counters'."""
        return self.size + self.counters * self.limbs

    @property
    def dtype(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """The unsigned integers whose arithmetic is modulo 2^modulus_bits."""
        return np.dtype(np.uint16) if self.modulus_bits == 16 else np.dtype(np.uint32)

    @property
    def sensitivity(self) -> float:
        """What the L2 norm of one device's integers stays below in `encode_noised`.

        Source: Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian mechanism for
        federated learning with secure aggregation", Algorithm 1, in units of the granularity.
        """
        norm, size = float(self.levels), self.size
        rounded = norm**2 + size / 4
        rounded += math.sqrt(2 * math.log(1 / _BETA)) * (norm + math.sqrt(size) / 2)
        return min(math.sqrt(rounded), norm + math.sqrt(size))

    def encode(
        self, delta: _Floats, weight: int, counters: Sequence[int], rounding: bytes
    ) -> MaskedVector:
        """Return a device's update and counters as integers (length,) of `dtype`.

        Args:
            delta: (size,) float32; clipped to `norm` here.
            weight: at least 1; counts as `maximum_weight` at most.
            counters: each at least 0 and below 2^32.
            rounding: 32 bytes; the same ones round alike. They need not be secret.

        Raises:
            FedspkError: an argument has another shape or range, or `delta` is not finite.
        """
        if weight < 1:
            raise FedspkError(f"an update's weight must be at least 1, not {weight}.")
        factor = self._factor(delta) * min(weight, self.maximum_weight) / self.maximum_weight
        encoded, signed = self._empty()
        for part, rounded in _round(delta, factor, Keystream(rounding)):
            signed[part] = rounded
        encoded[self.size :] = self._split(counters)
        return encoded

    def encode_noised(
        self, delta: _Floats, rounding: bytes, noise: npt.NDArray[np.int64]
    ) -> MaskedVector:
        """Return an update as integers of an L2 norm below `sensitivity`, with noise added.

        The update is rounded anew until its norm is within the bound: conditional randomised
        rounding (Kairouz et al. 2021, Algorithm 1). Every device weighs `maximum_weight`.

        Args:
            delta: (size,) float32; clipped to `norm` here.
            rounding: 32 bytes; the same ones round alike.
            noise: (size,) integers, this device's part of the noise of the sum.

        Raises:
            FedspkError: an argument has another shape, `delta` is not finite, the noise is beyond
                `noise_margin`, or there are counters, which no noise would cover.
        """
        if self.counters:
            raise FedspkError("a sum with differential privacy carries no counters.")
        if noise.shape != (self.size,) or np.max(np.abs(noise), initial=0) > self.noise_margin:
            raise FedspkError("the noise of an update has another length or is beyond its margin.")
        factor, stream = self._factor(delta), Keystream(rounding)
        encoded, signed = self._empty()
        squares = math.inf
        while squares > self.sensitivity**2:
            squares = 0.0
            for part, rounded in _round(delta, factor, stream):
                signed[part] = rounded
                squares += float(np.square(rounded, dtype=np.float64).sum())
        np.add(signed, noise, out=signed, casting="unsafe")
        return encoded

    def decode(self, total: MaskedVector, survivors: int) -> DecodedSum:
        """Return what the modular sum of `survivors` encoded vectors means.

        Raises:
            FedspkError: the sum has another shape, or holds what no such devices can have sent: it
                was not unmasked right, or a device did not keep to the protocol.
        """
        if total.shape != (self.length,) or total.dtype != self.dtype:
            raise FedspkError(f"a sum of {total.size} numbers where {self.length} were expected.")
        if not 1 <= survivors <= self.clients:
            raise FedspkError(f"a sum over {survivors} devices of {self.clients}.")
        signed = total.view(np.dtype(f"i{total.itemsize}"))
        updates, limbs = signed[: self.size], signed[self.size :]
        largest = self._largest_sum(survivors)
        if self.size and max(updates.max(), -int(updates.min())) > largest:
            raise FedspkError("a sum of updates is out of range; it cannot be used.")
        if limbs.size and not 0 <= limbs.min() <= limbs.max() <= survivors * self.levels:
            raise FedspkError("a sum of counters is out of range; it cannot be used.")
        counters = limbs.reshape(self.counters, self.limbs).tolist()
        return DecodedSum(
            updates * self._step,
            tuple(
                sum(limb << (place * (self.precision_bits - 1)) for place, limb in enumerate(row))
                for row in counters
            ),
        )

    def rounding_error(self, survivors: int) -> float:
        """Return what a decoded coordinate differs at most from the exact weighted sum.

        That is one level of rounding, and float32's error in scaling, a device; without noise.
        """
        return survivors * (1 + self.levels * _FLOAT_ERROR) * self._step

    @property
    def _step(self) -> float:
        """What one level is worth in the sum."""
        return self.norm * self.maximum_weight / (self.levels * _HEADROOM)

    def _largest_sum(self, devices: int) -> int:
        return devices * self.levels + self.noise_margin

    def _factor(self, delta: _Floats) -> float:
        """Return by how much an update of full weight is multiplied to clip and scale it."""
        if delta.shape != (self.size,):
            raise FedspkError(f"an update of {delta.size} numbers where {self.size} were expected.")
        return clip_scale(delta, self.norm) * self.levels * _HEADROOM / self.norm

    def _empty(self) -> tuple[MaskedVector, npt.NDArray[np.signedinteger[Any]]]:
        """Return an array for a vector, and its update's part seen as signed integers."""
        encoded: MaskedVector = np.empty(self.length, self.dtype)
        return encoded, encoded[: self.size].view(np.dtype(f"i{encoded.itemsize}"))

    def _split(self, counters: Sequence[int]) -> list[int]:
        if len(counters) != self.counters:
            raise FedspkError(f"{len(counters)} counters where {self.counters} were expected.")
        for counter in counters:
            if not 0 <= counter < 1 << COUNTER_BITS:
                raise FedspkError(f"a counter must be 0 to 2^{COUNTER_BITS} - 1, not {counter}.")
        bits = self.precision_bits - 1
        return [
            counter >> (place * bits) & self.levels
            for counter in counters
            for place in range(self.limbs)
        ]


def clip_scale(delta: _Floats, norm: float) -> float:
    """Return the factor, at most 1, that brings the L2 norm of `delta` to `norm` at most.

    The norm is measured in float32, to 2^-12 of itself at worst; `encode` leaves room for that.

    Raises:
        FedspkError: `delta` holds numbers that are not finite, or beyond about 1e19.
    """
    squares = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(delta), _NORM_BLOCK):
            block = delta[start : start + _NORM_BLOCK]
            squares += float(np.dot(block, block))
    if not math.isfinite(squares):
        raise FedspkError("an update holds numbers that are not finite; it was not sent.")
    return min(1.0, norm / math.sqrt(squares)) if squares else 1.0


def _fitting_bits(modulus_bits: int, clients: int, noise_margin: int) -> int:
    """Return the most bits with which the sum of `clients` values and the noise cannot wrap."""
    room = max(0, (1 << (modulus_bits - 1)) - 1 - noise_margin)
    return (room // max(1, clients) + 1).bit_length()


def _round(delta: _Floats, factor: float, stream: Keystream) -> Iterator[tuple[slice, _Floats]]:
    """Yield the parts of `delta * factor`, stochastically rounded; each is valid until the next.

    A number y goes to its neighbours with chances that make y the mean: to the nearest integer f,
    and from there on when the rest y - f (exact in float32) and a uniform in [-1/2, 1/2] pass 1/2.
    """
    length = min(_CHUNK, len(delta))
    draws = np.empty(length, np.int32)
    scratch = np.empty((3, length), np.float32)
    for start in range(0, len(delta), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(delta)))
        rest, nearest, uniform = scratch[:, : part.stop - start]
        drawn = draws[: part.stop - start]
        np.multiply(delta[part], np.float32(factor), out=rest)
        np.rint(rest, out=nearest)
        np.subtract(rest, nearest, out=rest)
        stream.fill(drawn)
        np.copyto(uniform, drawn)
        np.multiply(uniform, np.float32(2.0**-32), out=uniform)
        np.add(rest, uniform, out=rest)
        np.rint(rest, out=rest)
        np.add(nearest, rest, out=nearest)
        yield part, nearest
