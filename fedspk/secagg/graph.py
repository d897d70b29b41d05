"""Who masks with whom: everybody with everybody, or everybody with k neighbours on a hidden ring.

The ring is a pseudorandom permutation of the cohort drawn from the context, which contains all
keys: nobody can choose its neighbours, and no key is chosen for its owner's neighbours.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import shake_256

import numpy as np


class Graph:
    """The full graph (degree = devices - 1), or the Harary graph of an even degree k on the ring:
    each device and the k/2 before and the k/2 after it (Bell et al. 2020, section 3.1).

    Args:
        devices: size of the cohort; a device goes by its index.
        degree: neighbours of each device.
        context: what the ring is drawn from (32 bytes).
    """

    def __init__(self, devices: int, degree: int, context: bytes) -> None:
        self.devices = devices
        self.degree = degree
        self._context = context
        self._neighbours: dict[int, tuple[int, ...]] = {}

    def neighbours(self, index: int) -> tuple[int, ...]:
        """Return the devices that this one masks with, ascending."""
        if index not in self._neighbours:
            self._neighbours[index] = self._find(index)
        return self._neighbours[index]

    def holders(self, index: int) -> tuple[int, ...]:
        """Return the devices that hold a share of this one's secrets, ascending.

        These are its neighbours and, in the full graph, itself; the symmetry of the graph makes
        them the devices whose shares this one holds, too.
        """
        return tuple(range(self.devices)) if self.is_full else self.neighbours(index)

    @property
    def is_full(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.degree == self.devices - 1

    def _find(self, index: int) -> tuple[int, ...]:
        if self.is_full:
            return tuple(other for other in range(self.devices) if other != index)
        ring, places = self._ring
        half, place = self.degree // 2, places[index] + self.devices
        return tuple(sorted(ring[place - half : place] + ring[place + 1 : place + half + 1]))

    @cached_property
    def _ring(self) -> tuple[list[int], list[int]]:
        """The devices in the ring's order, three times round, and the place of each device."""
        stream = shake_256(b"fedspk/1 ring" + self._context).digest(8 * self.devices)
        ring = np.argsort(np.frombuffer(stream, "<u8"), kind="stable")
        return 3 * ring.tolist(), np.argsort(ring).tolist()
