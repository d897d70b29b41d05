"""When a device looks for a new version: at random, so that a fleet does not come all at once."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

_JITTER = 0.2  # of every wait, either way
_FIRST_RETRY_S = 60.0
_LONGEST_RETRY_S = 3600.0


@dataclass
class Backoff:
    """How long to wait after failures in a row: doubled each time, up to a limit.

    Args:
        draw: the source of chance.
        first_s: after the first failure.
        longest_s: the limit.
    """

    draw: random.Random
    first_s: float = _FIRST_RETRY_S
    longest_s: float = _LONGEST_RETRY_S
    _failures: int = field(default=0, init=False)

    def failed(self) -> float:
        """Return the seconds to wait after one more failure."""
        wait = min(self.longest_s, self.first_s * 2 ** min(self._failures, 32))
        self._failures += 1
        return jittered(wait, self.draw)

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0


class Schedule:
    """When to look next.

    The first look comes at random within a minute, as a fleet may get its power back at once;
    then one every `period_s` +- 20 %, and after failures sooner, then later and later.

    Args:
        period_s: seconds between two looks.
        draw: the source of chance.
    """

    def __init__(self, period_s: float, draw: random.Random) -> None:
        self._period_s = period_s
        self._draw = draw
        first = min(period_s, _FIRST_RETRY_S)
        self._backoff = Backoff(draw, first, max(period_s, 10 * first))

    def first(self) -> float:
        """Return the seconds until the first look."""
        return self._draw.uniform(0, min(self._period_s, _FIRST_RETRY_S))

    def next(self, *, reached: bool) -> float:
        """Return the seconds until the next look, after one that reached the server or did not."""
        if not reached:
            return self._backoff.failed()
        self._backoff.succeeded()
        return jittered(self._period_s, self._draw)


def jittered(seconds: float, draw: random.Random) -> float:
    """Return `seconds` +- 20 %."""
    return seconds * draw.uniform(1 - _JITTER, 1 + _JITTER)
