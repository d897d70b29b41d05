"""Masks: pseudorandom vectors that are added to a vector or taken from it, modulo 2^16 or 2^32.

A mask is the AES-256-CTR keystream of its key, read as little-endian integers of the vector's
width. Masks are never held whole: a chunk of the vector stays in the cache while a chunk of every
mask is drawn and added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fedspk.secagg.keys import derive_key
from fedspk.secagg.keystream import CHUNK_BYTES, Keystream

MaskedVector: TypeAlias = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class Stream(NamedTuple):
    """One mask: its key (32 bytes), and whether it is subtracted."""

    key: bytes
    negative: bool


def own_mask(seed: bytes, context: bytes, index: int) -> Stream:
    """Return the mask that a device adds on its own account: PRG(b_i) of Bonawitz et al. 2017."""
    return Stream(derive_key(seed, context, "self", index), False)


def common_mask(secret: bytes, context: bytes, index: int, other: int) -> Stream:
    """Return the mask that two devices have in common, as the device `index` applies it.

    The lower index adds PRG(s_ij), the higher one subtracts it (Bonawitz et al. 2017, section 4).

    Args:
        secret: what the two have agreed on with their masking keys.
    """
    key = derive_key(secret, context, "mask", min(index, other), max(index, other))
    return Stream(key, index > other)


def add_masks(values: MaskedVector, streams: Sequence[Stream], *, first: int = 0) -> None:
    """Add masks to `values` (n,) uint16 or uint32 in place, modulo 2^16 or 2^32.

    Args:
        values: a vector, or the part of it that starts at index `first`: parts can be done apart,
            in any order, by several processes.
        streams: the masks; each key is used with vectors of one width only.
        first: index of `values[0]` in the whole vector.

    Source: Bonawitz et al. 2017, section 4, round 2 (the masked input vector).
    """
    # Little-endian on the wire and everywhere: on the usual machines this is the native type.
    scratch = np.empty(CHUNK_BYTES // values.itemsize, values.dtype.newbyteorder("<"))
    buffer = scratch.data.cast("B")
    masks = [
        (
            Keystream(stream.key, first * values.itemsize).fill_chunk,
            np.subtract if stream.negative else np.add,
        )
        for stream in streams
    ]
    for start in range(0, len(values), len(scratch)):
        part = values[start : start + len(scratch)]
        mask, drawn = scratch[: len(part)], buffer[: part.nbytes]
        for fill, combine in masks:
            fill(drawn)
            combine(part, mask, out=part)
