"""The version-control simulation against SpeakerVerSim: requests a second, and the same results.

    python benchmarks/versioning.py [--speakerversim FOLDER] [--runs 400] [--json FILE]

The configuration is the paper's (section 7.2): 10 workers, a request every 10 s, 3 hours, updates
after an exponential time of mean 1 h. Times are of one core, the best of some repetitions, draws
and results included. FOLDER holds the package SpeakerVerSim 0.1.3; this Python, or the one
of `--python`, needs simpy, munch and pyyaml to run it. Without it, its columns are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fedspk.files import write_json
from simulations.versioning.compiled import is_compiled
from simulations.versioning.config import DEFAULT_STRATEGIES, VersioningConfig
from simulations.versioning.run import simulate

FIGURES = ("bounce %", "latency s", "maximum s", "Gflops", "re-enrolments")
REPETITIONS = 5
CASES = {
    "section 7.2": {},
    "10,000 users": {"users": 10_000},
    "sync interval 1 s": {"sync_interval": 1.0},
}

# Runs in the other Python: prints one JSON row of `FIGURES` and the seconds for each run.
_THEIRS = """
import json, random, sys, time
import munch
sys.path.insert(0, sys.argv[1])
import SpeakerVerSim
strategy, users, sync, runs = sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
for run in range(runs):
    random.seed(run)
    config = munch.Munch(
        strategy=strategy, num_users=users, user_distribution="exponential", num_cloud_workers=10,
        client_frontend_latency=0.244, frontend_worker_latency=0.0012,
        database_read_latency=0.0005, database_write_latency=0.01, worker_inference_latency=0.5,
        flops_per_inference=2.1e9, client_request_interval=10, worker_update_mean_time=3600,
        version_query_interval=sync, time_to_run=10800, log_verbosity=0, print_stats=False,
    )
    begin = time.process_time()
    stats = SpeakerVerSim.simulate(config)
    seconds = time.process_time() - begin
    count = stats.total_num_messages
    inferences = sum(len(jobs) for jobs in stats.workload.values())
    print(json.dumps([
        100 * stats.backward_bounce_count / count, stats.average_e2e_latency,
        stats.max_e2e_latency, stats.average_total_flops / 1e9, inferences - count,
        count / seconds,
    ]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--speakerversim", type=Path)
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    speeds = {
        case: {
            strategy: _speeds(strategy, changes, options.speakerversim, options.python)
            for strategy in DEFAULT_STRATEGIES
            if case != "sync interval 1 s" or strategy == "SSO-sync"
        }
        for case, changes in CASES.items()
    }
    _print_speeds(speeds)
    results = {
        strategy: _results(strategy, options.runs, options.speakerversim, options.python)
        for strategy in DEFAULT_STRATEGIES
    }
    _print_results(results, options.runs)
    if options.json:
        write_json(options.json, {"requests_per_second": speeds, "results": results})


def _speeds(
    strategy: str, changes: dict[str, float], theirs: Path | None, python: Path
) -> dict[str, float]:
    """Return requests a second of each program."""
    found = {}
    for model in ("compat", "default"):
        config = VersioningConfig.model_validate({"model": model, **changes})
        for kind in ("plain", "numba") if is_compiled() else ("plain",):
            os.environ["NUMBA_DISABLE_JIT"] = "1" if kind == "plain" else "0"
            found[f"{model}, {kind}"] = _our_speed(config, strategy)
    os.environ["NUMBA_DISABLE_JIT"] = "0"
    if theirs is not None:
        users, sync = int(changes.get("users", 1)), changes.get("sync_interval", 600.0)
        rows = _run_theirs(theirs, python, strategy, users, sync, 3)
        found["SpeakerVerSim"] = float(rows[:, -1].max())
    return found


def _our_speed(config: VersioningConfig, strategy: str, runs: int = 30) -> float:
    simulate(config, strategy, 0)
    best = 0.0
    for _ in range(REPETITIONS):
        begin = time.process_time()
        requests = sum(simulate(config, strategy, run).requests for run in range(runs))
        best = max(best, requests / (time.process_time() - begin))
    return best


def _results(
    strategy: str, runs: int, theirs: Path | None, python: Path
) -> dict[str, dict[str, list[float]]]:
    """Return mean and standard deviation between runs of the figures, ours and theirs."""
    config = VersioningConfig(model="compat")
    rows = []
    for run in range(runs):
        result = simulate(config, strategy, run)
        rows.append(
            (
                100 * result.backward_bounces / result.requests,
                result.latency_s.mean(),
                result.latency_s.max(),
                result.flops.mean() / 1e9,
                result.reenrolments_foreground + result.reenrolments_background,
            )
        )
    found = {"ours": np.array(rows)}
    if theirs is not None:
        found["SpeakerVerSim"] = _run_theirs(theirs, python, strategy, 1, 600.0, runs)
    return {
        who: {
            name: [float(figures[:, i].mean()), float(figures[:, i].std(ddof=1))]
            for i, name in enumerate(FIGURES)
        }
        for who, figures in found.items()
    }


def _run_theirs(
    folder: Path, python: Path, strategy: str, users: int, sync: float, runs: int
) -> np.ndarray:
    arguments = [strategy, str(users), str(sync), str(runs)]
    done = subprocess.run(
        [str(python), "-c", _THEIRS, str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return np.array([json.loads(line) for line in done.stdout.splitlines()])


def _print_speeds(speeds: dict[str, dict[str, dict[str, float]]]) -> None:
    for case, strategies in speeds.items():
        columns = list(next(iter(strategies.values())))
        print(f"\nThousand requests a second, {case}\n")
        print(f"| strategy | {' | '.join(columns)} |")
        print("|---" * (len(columns) + 1) + "|")
        for strategy, found in strategies.items():
            theirs = found.get("SpeakerVerSim")
            cells = [
                f"{speed / 1e3:,.{0 if speed > 1e5 else 1}f}"
                + (f" ({speed / theirs:,.0f} x)" if theirs and name != "SpeakerVerSim" else "")
                for name, speed in found.items()
            ]
            print(f"| {strategy} | {' | '.join(cells)} |")


def _print_results(results: dict[str, dict[str, dict[str, list[float]]]], runs: int) -> None:
    print(f"\nMean +- standard deviation between {runs} runs; z: difference in standard errors\n")
    print(f"| strategy | program | {' | '.join(FIGURES)} |")
    print("|---" * (len(FIGURES) + 2) + "|")
    for strategy, found in results.items():
        for who, figures in found.items():
            cells = [f"{mean:.4g} +- {deviation:.2g}" for mean, deviation in figures.values()]
            print(f"| {strategy} | {who} | {' | '.join(cells)} |")
        if len(found) == 2:
            cells = []
            for name in FIGURES:
                (mean, deviation), (other, spread) = (figures[name] for figures in found.values())
                error = np.hypot(deviation, spread) / runs**0.5
                cells.append(f"{(mean - other) / error:+.1f}" if error else "0")
            print(f"| | z | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
