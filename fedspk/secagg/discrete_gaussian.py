"""The discrete Gaussian: integer noise whose sums are private, drawn from the keystream alone.

N_Z(0, s^2) takes the integer x with probability proportional to exp(-x^2 / 2 s^2) (Canonne, Kamath
and Steinke 2020, definition 1). Their sampler is exact but takes one number at a time; this one
rejects from a histogram (Devroye 1986, section VIII.1) with whole arrays: the absolute value falls
into a block of equal width, evenly within it, and is kept with the ratio of its probability to the
block's first. Only the blocks' probabilities and these ratios are rounded to float64: the
probability of a number is right to a relative 2^-45 up to 8 s and to an absolute 2^-90 beyond. A
relative error e of all probabilities costs at most 2 e of epsilon: 6e-5 for a sum of a million
numbers with the noise of 1000 devices.
"""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.secagg.keystream import Keystream

Int64Array = npt.NDArray[np.int64]

LARGEST_SCALE = 2.0**32

_DRAWN = 1 << 13  # candidates at a time: they stay in the processor's cache
_TAIL = 12  # values beyond so many scales have a probability below 2^-103 and are never drawn
_SIGN_BIT, _OFFSET_BITS, _LOW_BITS = np.uint64(1 << 31), np.uint64((1 << 31) - 1), np.uint64(32)


class DiscreteGaussian:
    """A stream of independent integers from N_Z(0, scale^2).

    Args:
        scale: s; the standard deviation is at most that (Canonne et al. 2020), and hardly less.
        key: 32 bytes that decide the stream; None draws them from the operating system, as noise
            that hides anything must.

    Raises:
        FedspkError: the scale is not in (0, 2^32].
    """

    def __init__(self, scale: float, key: bytes | None = None) -> None:
        if not 0 < scale <= LARGEST_SCALE:
            raise FedspkError(f"noise of scale {scale:g} cannot be drawn; choose one below 2^32.")
        self._scale = scale
        # A power of two, so that the place within a block is some bits of the keystream.
        self._width = 1 << max(0, math.frexp(scale)[1] - 3)
        starts = np.arange(0, math.ceil(_TAIL * scale) + 1, self._width)
        heights = np.exp(-0.5 * (starts / scale) ** 2)
        tails = [math.fsum(heights[block:]) for block in range(len(heights))]
        self._tails = np.array(tails[::-1]) / tails[0]  # P(this block or one further out), rising
        self._stream = Keystream(os.urandom(32) if key is None else key)

    def draw(self, size: int) -> Int64Array:
        """Return the next `size` integers of the stream, (size,) int64."""
        values = np.empty(size, np.int64)
        filled = 0
        while filled < size:
            accepted = self._candidates()[: size - filled]
            values[filled : filled + len(accepted)] = accepted
            filled += len(accepted)
        return values

    def _candidates(self) -> Int64Array:
        words = np.empty((3, _DRAWN), "<u8")
        self._stream.fill(words)
        place, detail, chance = words
        # 96 bits, so that even the outermost blocks are hit with their own probability.
        uniform = place * 2.0**-64 + (detail >> _LOW_BITS) * 2.0**-96
        block = len(self._tails) - 1 - np.searchsorted(self._tails, uniform)
        start = block * self._width
        offset = (detail & _OFFSET_BITS & np.uint64(self._width - 1)).astype(np.int64)
        ratio = np.exp(offset * (offset + 2.0 * start) * (-0.5 / self._scale**2))
        value = start + offset
        negative = (detail & _SIGN_BIT) != 0
        kept = chance * 2.0**-64 < ratio
        kept &= ~(negative & (value == 0))  # or zero would come twice as often
        signed: Int64Array = np.where(negative, -value, value)[kept]
        return signed


def largest_sum(scale: float, terms: int, size: int, probability: float) -> int:
    """Return what `size` sums, each of `terms` draws, exceed in absolute value improbably.

    Any of the sums does so with at most this probability: N_Z(0, s^2) is subgaussian with variance
    proxy s^2 (Canonne et al. 2020), the proxies add up, and so do the probabilities.
    """
    return math.ceil(scale * math.sqrt(2 * terms * math.log(2 * size / probability)))
