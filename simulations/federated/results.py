"""From the devices' trial scores to `results.json`: summary, devices, significance tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from fedspk.seeds import numpy_generator
from fedspk.significance import compare
from simulations.federated.trials import DeviceErrors

Json: TypeAlias = dict[str, Any]

# Figures of a device that are tested for significance: `tests[].metric`.
_TESTED = ("eer", "eer_within_session", "eer_outsiders", "eer_classifier")
_RESAMPLES = 2000


@dataclass(frozen=True)
class ArmCost:
    """What one arm spent and where its training ended, means over folds.

    steps: optimiser steps of one device (mean over devices), or of the central training.
    seconds: training and validation of all devices, one after the other.
    bytes: what crossed between all devices and the aggregator.
    best_step: the step (the round, of a federated arm) whose model was kept, mean over devices.
    at_limit: share of the devices whose best was their last step: more training might have helped.
    """

    steps: float = 0.0
    seconds: float = 0.0
    bytes: float = 0.0
    best_step: float | None = None
    at_limit: float | None = None


@dataclass(frozen=True)
class ArmResult:
    """One arm: every device's error rates, the cost, and the learning curve if it has rounds.

    `privacy` says in words what noise on the updates guarantees.
    """

    name: str
    errors: tuple[DeviceErrors, ...]
    cost: ArmCost
    history: tuple[Json, ...] = ()
    privacy: str | None = None


def mean_cost(costs: Sequence[ArmCost]) -> ArmCost:
    """Return the mean over folds, field by field; what one fold does not know stays unknown."""
    means: dict[str, Any] = {}
    for field in fields(ArmCost):
        values = [getattr(cost, field.name) for cost in costs]
        means[field.name] = None if None in values else float(np.mean(values))
    return ArmCost(**means)


def summarise(arm: ArmResult, seed: int) -> Json:
    """Return the arm's line of the summary: means over devices in per cent, and its cost.

    The interval is a 95 % bootstrap over devices.
    """
    eer = np.array([device.eer for device in arm.errors])
    generator = numpy_generator(seed, "summary", arm.name)
    resampled = generator.choice(eer, size=(_RESAMPLES, len(eer))).mean(axis=1)
    return {
        "mean_eer": float(eer.mean()),
        "mean_eer_interval": [float(value) for value in np.percentile(resampled, [2.5, 97.5])],
        "mean_eer_within_session": _mean(arm, "eer_within_session"),
        "mean_eer_outsiders": _mean(arm, "eer_outsiders"),
        "mean_eer_classifier": _mean(arm, "eer_classifier"),
        "min_dcf": float(np.mean([device.min_dcf for device in arm.errors])),
        "cost": asdict(arm.cost),
    }


def device_rows(speakers: Sequence[str], arms: Sequence[ArmResult]) -> list[Json]:
    """Return one row a device: its speaker and each arm's error rates in per cent."""
    fields = (*_TESTED, "eer_interval", "min_dcf")
    return [
        {"speaker": speaker}
        | {
            field: {arm.name: _plain(getattr(arm.errors[index], field)) for arm in arms}
            for field in fields
        }
        for index, speaker in enumerate(speakers)
    ]


def compare_arms(rows: Sequence[Json], other: Sequence[Json] | None = None) -> list[Json]:
    """Return every significance test over devices, one entry a pair, metric and test.

    Args:
        rows: `devices` of a results file; its arms are compared with one another.
        other: `devices` of a second run, in the same order: then each arm that both runs have
            is compared with itself across the runs.
    """
    return [
        {"metric": metric, **row}
        for metric in _TESTED
        for a, b, first, second in _pairs(rows, other, metric)
        for row in compare(a, first, b, second).to_rows()
    ]


def _pairs(
    rows: Sequence[Json], other: Sequence[Json] | None, metric: str
) -> list[tuple[str, str, list[float], list[float]]]:
    here = _columns(rows, metric)
    if other is None:
        return [(a, b, here[a], here[b]) for a, b in combinations(here, 2)]
    there = _columns(other, metric)
    return [(arm, arm, here[arm], there[arm]) for arm in here if arm in there]


def _columns(rows: Sequence[Json], metric: str) -> Mapping[str, list[float]]:
    """Return each arm's values over the devices, arms without the metric left out."""
    arms = rows[0][metric]
    columns = {arm: [row[metric].get(arm) for row in rows] for arm in arms}
    return {arm: values for arm, values in columns.items() if None not in values}


def _mean(arm: ArmResult, field: str) -> float | None:
    values = [getattr(device, field) for device in arm.errors]
    return None if None in values else float(np.mean(values))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
