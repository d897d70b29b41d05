"""What a run knows of a model that it made: the part of a manifest that training gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aggregator.record import RoundProgress, RoundRecord
from fedspk.rounds import RunConfig

Budget = tuple[float, float] | None
"""Epsilon and delta of what noise guarantees; None without noise."""


def training_facts(
    config: RunConfig, record: RoundRecord | RoundProgress, budget: Budget
) -> dict[str, Any]:
    """Return the fields `training` and `privacy` of the manifest of a round's model, as JSON.

    Args:
        config: the run.
        record: of the round that made the model; round 0 had no devices.
        budget: spent until then.
    """
    training: dict[str, Any] = {"config": _scalars(config.model_dump()), "round": record.round}
    if record.round > 0:
        training |= {"cohort_size": record.asked, "survivors": record.answered}
    facts: dict[str, Any] = {"training": training}
    if budget is not None and budget[0] > 0:
        facts["privacy"] = {"epsilon": budget[0], "delta": budget[1]}
    return facts


def _scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values that are set by their dotted names, as a manifest holds them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _scalars(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value
    return found
