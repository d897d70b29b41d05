"""Where values lie in a drawing: scales with round ends and marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`; `marks` are round values within, for lines and labels."""

    low: float
    high: float
    marks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], marks: int = 4) -> Scale:
        """Return a scale with round ends, about `marks` steps long, that holds all values.

        >>> Scale.over([4.1, 5.2]).marks
        (4.0, 4.5, 5.0, 5.5)
        """
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        rough = (high - low) / marks or max(abs(high), 1.0) / marks
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.floor(low / step + 1e-9)
        last = max(math.ceil(high / step - 1e-9), first + 1)
        places = max(0, -math.floor(math.log10(step)))
        found = tuple(round(index * step, places) for index in range(first, last + 1))
        return cls(found[0], found[-1], found)

    @property
    def digits(self) -> int:
        """How many decimals the marks need."""
        step = self.marks[1] - self.marks[0]
        return max(0, -math.floor(math.log10(step) + 1e-9))

    def at(self, value: float) -> float:
        """Return where a value lies, in per cent of the way from low to high."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Pages:
    """One page of a long list: its number from 1, how many there are, and which rows it shows."""

    number: int
    count: int
    first: int
    last: int
    total: int

    @classmethod
    def cut(cls, total: int, wanted: str, size: int) -> Pages:
        """Return the wanted page, or the nearest there is."""
        count = max(1, -(-total // size))
        number = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 9 else 1
        number = min(max(number, 1), count)
        first = (number - 1) * size
        return cls(number, count, first, min(first + size, total), total)
