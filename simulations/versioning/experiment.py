"""The whole simulation: from configuration and flags to a folder with results and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedspk.files import write_json
from fedspk.progress import progress
from simulations.executors import usable_cpus
from simulations.versioning.config import VersioningConfig
from simulations.versioning.loading import load_config, load_sweep, parse_sweep
from simulations.versioning.parallel import simulate_all
from simulations.versioning.recommendation import recommend
from simulations.versioning.report import write_report
from simulations.versioning.results import Json, comparisons, strategy_results, versions

_REQUESTS_A_PROCESS = 1e6


def run_experiment(
    file: Path | None,
    flags: Mapping[str, Any],
    sweep: str | None,
    out: Path,
    *,
    jobs: int | None = None,
) -> Json:
    """Simulate, write `results.json`, `report.html` and `figures/`; return the results.

    Args:
        file: configuration, TOML or YAML.
        flags: override the file's fields, by dotted name.
        sweep: `key=v1,v2,...`: simulated beside the configuration itself.
        out: folder, made if it is not there.
        jobs: processes; they do not change the results. By default one for each CPU, fewer where
            starting them takes longer than the work.

    Raises:
        FedspkError: the configuration is not possible, or `out` cannot be written.
    """
    config = load_config(file, flags)
    plan = parse_sweep(sweep) if sweep is not None else None
    points = load_sweep(file, flags, plan) if plan is not None else []
    out.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before the work
    distinct = list(dict.fromkeys([config, *points]))  # what is swept may hold the plain value
    total = sum(each.runs * len(each.strategies) for each in distinct)
    with progress(total=total, description="simulating", unit="run") as bar:
        found = simulate_all(distinct, jobs=jobs or _worthwhile(distinct), progress=bar.update)
    simulated = dict(zip(distinct, found, strict=True))
    strategies = strategy_results(simulated[config])
    results: Json = {
        "config": config.model_dump(mode="json"),
        "strategies": strategies,
        "comparisons": comparisons(strategies),
        "recommendation": asdict(recommend(strategies, queues=_queues(config))),
        "sweep": None
        if plan is None
        else {
            "key": plan.key,
            "points": [
                {"value": value, "strategies": strategy_results(simulated[point])}
                for value, point in zip(plan.values, points, strict=True)
            ],
        },
        "versions": versions(),
    }
    write_json(out / "results.json", results)
    write_report(out, results, simulated[config])
    return results


def _worthwhile(configs: Sequence[VersioningConfig]) -> int:
    """Return how many processes pay: one starts in the time that another needs for a million."""
    requests = sum(
        each.runs * len(each.strategies) * each.duration_s / each.interval for each in configs
    )
    return min(usable_cpus(), 1 + int(requests / _REQUESTS_A_PROCESS))


def _queues(config: VersioningConfig) -> bool:
    """Return whether requests wait for one another in this model."""
    return config.model == "default" and config.worker.concurrency is not None
