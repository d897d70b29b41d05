"""How many jobs there are at a time, from when each began and ended."""

from __future__ import annotations

import numpy as np

from simulations.versioning.workload import Floats, Ints

BINS = 60


def mean_number(begin: Floats, end: Floats, worker: Ints, workers: int, duration: float) -> Floats:
    """Return the mean number of jobs at each worker in equal parts of the run (workers, 60).

    begin, end: seconds from the start of the run; worker: whose job it is, each (jobs,). What
    lies after the run does not count.

    >>> mean_number(np.array([0.0]), np.array([90.0]), np.array([0]), 1, 3600.0)[0, :3].tolist()
    [1.0, 0.5, 0.0]
    """
    width = duration / BINS
    total: Floats = np.zeros(workers * BINS)
    part = (begin / width).astype(np.int64)
    while len(begin):
        inside = part < BINS
        if not inside.all():
            begin, end, worker, part = begin[inside], end[inside], worker[inside], part[inside]
        edge = np.multiply(part + 1, width, dtype=np.float64)
        shares = np.minimum(end, edge) - begin
        total += np.bincount(worker * BINS + part, shares, len(total))
        longer = end > edge
        if not longer.any():
            break
        begin, end, worker, part = edge[longer], end[longer], worker[longer], part[longer] + 1
    return total.reshape(workers, BINS) / width
