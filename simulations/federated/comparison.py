"""Two runs against each other, device by device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedspk.errors import FedspkError
from fedspk.files import read_json
from simulations.federated.results import Json, compare_arms


def compare_runs(first: Path, second: Path) -> list[Json]:
    """Return the significance tests of every arm that both runs have, over their devices.

    Raises:
        FedspkError: a folder holds no results, or the two runs have fewer than two devices or no
            arm in common.
    """
    rows = [_devices(folder) for folder in (first, second)]
    shared = [speaker for speaker in rows[0] if speaker in rows[1]]
    if len(shared) < 2:
        raise FedspkError(
            f"{first} and {second} share {len(shared)} device owners; a test needs two or more: "
            "use the same corpus and seed for both runs."
        )
    try:
        entries = compare_arms(*([side[speaker] for speaker in shared] for side in rows))
    except (KeyError, TypeError, AttributeError) as error:
        raise FedspkError(
            f"{first} or {second}: results.json was not written by this version of "
            "`fedspk simulate`; run it again."
        ) from error
    if not entries:
        raise FedspkError(f"{first} and {second} have no arm in common.")
    return entries


def comparison_table(entries: Sequence[Json]) -> str:
    """Return the paired t-tests of all metrics as plain text."""
    lines = [f"{'arm':<20} {'metric':<20} {'improvement':>11} {'improved':>9} {'paired t':>9}"]
    for entry in entries:
        if entry["test"] == "paired t":
            gain, p = entry["relative_improvement"], entry["p_value"]
            lines.append(
                f"{entry['a']:<20} {entry['metric']:<20} "
                f"{'-' if gain is None else format(gain, '+.1%'):>11} "
                f"{entry['devices_improved']:>4} of {entry['devices']:<2} "
                f"{'-' if p is None else format(p, '.2g'):>8}"
            )
    return "\n".join(lines)


def _devices(folder: Path) -> dict[str, Json]:
    path = folder / "results.json"
    if not path.is_file():
        raise FedspkError(f"{folder}: holds no results.json; give the --out folder of a run.")
    results = read_json(path)
    try:
        return {device["speaker"]: device for device in results["devices"]}
    except (KeyError, TypeError) as error:
        raise FedspkError(f"{path}: is not a results file of `fedspk simulate`.") from error
