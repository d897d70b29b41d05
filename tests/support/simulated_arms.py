"""The results of an experiment as `fedspk simulate` writes them, without the experiment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from fedspk.files import write_json
from gan.invented import file_hash


def write_results(folder: Path, arms: Sequence[str], generator: Path) -> Path:
    """Write `results.json` of a run with these arms and this generator; return the folder."""
    tests = [
        {"metric": metric, "test": "paired t", "a": a, "b": b, "p_value": 0.01}
        for metric in ("eer", "eer_outsiders")
        for a, b in combinations(arms, 2)
    ]
    summary = {arm: {"mean_eer": 5.0, "mean_eer_interval": [4.0, 6.0]} for arm in arms}
    devices = [{"eer": dict.fromkeys(arms, 5.0)} for _ in range(3)]
    results = {
        "summary": summary,
        "tests": tests,
        "devices": devices,
        "config": {"impostors": ["speech", "gan"]},
        "generator": file_hash(generator),
    }
    write_json(folder / "results.json", results)
    return folder
