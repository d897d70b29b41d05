"""What the secure sums of a federated arm took, from its rounds' records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulations.federated.results import Json


def secure_summary(history: Sequence[Json], privacy: str | None) -> Json | None:
    """Return what a run's secure sums took; None when updates were sent in clear.

    Of the updates and of the validation losses: how many rounds had a sum, smallest and largest
    cohort, share of the devices that are in the sums, rounds that took more than one attempt,
    cohorts left out, share of the updates that were clipped, bytes in all, and mean seconds a round
    in each stage.

    Args:
        history: the rounds' records, as in `results.json`.
        privacy: what noise guarantees, in words.
    """
    sums = [entry for record in history for entry in record["secure"]]
    if not sums:
        return None
    return {
        "updates": _summed([entry for entry in sums if entry["purpose"] == "train"]),
        "validation": _summed([entry for entry in sums if entry["purpose"] == "evaluate"]),
        "smallest_cohort": min(size for entry in sums for size in entry["cohorts"]),
        "privacy": privacy,
    }


def _summed(sums: Sequence[Json]) -> Json | None:
    if not sums:
        return None
    cohorts = [size for entry in sums for size in entry["cohorts"]]
    survivors = [size for entry in sums for size in entry["survivors"]]
    clipped = [entry["clipped"] for entry in sums if entry["clipped"] is not None]
    computing = sums[0]["purpose"]
    names = {"offer": "offer", "share": "share", computing: "compute"}
    names |= {"survivors": "survivors", "unmask": "unmask", "sum": "sum"}
    return {
        "rounds": len(sums),
        "smallest_cohort": min(cohorts),
        "largest_cohort": max(cohorts),
        "survivors": sum(survivors) / sum(cohorts),
        "retried": sum(entry["attempts"] > 1 for entry in sums),
        "discarded": sum(entry["discarded"] for entry in sums),
        "clipped": float(np.mean(clipped)) if clipped else None,
        "bytes_down": sum(entry["bytes_down"] for entry in sums),
        "bytes_up": sum(entry["bytes_up"] for entry in sums),
        "seconds": {
            shown: sum(entry["seconds"].get(stage, 0.0) for entry in sums) / len(sums)
            for stage, shown in names.items()
        },
    }
