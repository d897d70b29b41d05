"""Overhead of a federated round: ours against Flower's own FedAvg on its simulation engine.

    python benchmarks/federation.py [--clients 25,100,500] [--workers 2] [--json FILE]

Three rounds with a 1.05 million parameter float32 model and a trivial client: ours returns a
constant delta, Flower's returns the model plus a constant (as one NumPy array). What remains is
what moving tasks and weights costs. All on this machine in this run; the first round carries the
start of workers and imports.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aggregator.federation import run_federation
from fedspk.files import write_json
from fedspk.rounds import RunConfig
from fedspk.weights import WeightStore
from simulations.executors import open_executor
from simulations.flower_run import flower_run
from simulations.grid import LocalGrid

PARAMETERS, ROUNDS = 1_050_000, 3
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """One measurement: seconds of each round and of the whole."""

    clients: int
    system: str
    rounds: list[float]
    whole: float

    @property
    def task_milliseconds(self) -> float:
        """Wall milliseconds a client task in the rounds after the first."""
        warm = self.rounds[1:]
        return 1000 * sum(warm) / len(warm) / self.clients


def ours(clients: int, backend: str, workers: int, folder: Path) -> Figure:
    """Measure a run of ours; `whole` is from nothing to the end of the last worker."""
    started = time.perf_counter()
    store = WeightStore(folder / "store")
    initial = store.put(np.zeros(PARAMETERS, np.float32))
    config = RunConfig().changed(rounds=ROUNDS, evaluate_every=0, secure=None)
    with open_executor(backend, workers=workers) as executor:
        grid = LocalGrid(
            "trivial_client:app",
            [{}] * clients,
            executor,
            run_config={"store": str(folder / "store")},
        )
        result = run_federation(grid, config, store, folder / "run", initial=initial)
    whole = time.perf_counter() - started
    answered = [record.answered for record in result.history[1:]]
    if answered != [clients] * ROUNDS:
        raise RuntimeError(f"{answered} of {clients} clients answered")
    rounds = [record.seconds for record in result.history]
    start, *rest = rounds  # round 0 asks the devices who they are: part of the first
    name = f"fedspk, {'Ray' if backend == 'ray' else 'in-process'}, {workers} workers"
    return Figure(
        clients, name.replace("1 workers", "1 worker"), [start + rest[0], *rest[1:]], whole
    )


def flower(clients: int, workers: int, folder: Path) -> Figure:
    """Measure Flower's FedAvg under `flwr run`; `whole` is the command's."""
    times = folder / "times.json"
    started = time.perf_counter()
    flower_run(
        _HERE / "flower_fedavg",
        nodes=clients,
        cpus=workers,
        home=folder / "home",
        run_config={"times": str(times), "rounds": ROUNDS, "parameters": PARAMETERS},
    )
    whole = time.perf_counter() - started
    ends = json.loads(times.read_text())
    rounds = [after - before for before, after in itertools.pairwise(ends)]
    return Figure(clients, f"Flower FedAvg, Ray, {workers} CPUs", rounds, whole)


def main() -> None:
    """Measure and print a Markdown table."""
    arguments = _arguments()
    sys.path.insert(0, str(_HERE))  # workers import the trivial client
    figures: list[Figure] = []
    for clients in arguments.clients:
        runs: list[Callable[[Path], Figure]] = [
            lambda folder, n=clients: ours(n, "inprocess", 1, folder),
            lambda folder, n=clients: ours(n, "inprocess", arguments.workers, folder),
            lambda folder, n=clients: ours(n, "ray", arguments.workers, folder),
            lambda folder, n=clients: flower(n, arguments.workers, folder),
        ]
        for run in runs:
            with tempfile.TemporaryDirectory() as folder:
                figures.append(run(Path(folder)))
                print(_row(figures[-1]), file=sys.stderr)
    print(_table(figures))
    if arguments.json:
        write_json(arguments.json, {"machine": _machine(), "figures": [asdict(f) for f in figures]})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clients",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[25, 100, 500],
        help="numbers of clients, comma-separated",
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes or CPUs of Ray")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def _machine() -> dict[str, str | int]:
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _row(figure: Figure) -> str:
    rounds = " | ".join(f"{seconds:.2f}" for seconds in figure.rounds)
    return (
        f"| {figure.clients} | {figure.system} | {rounds} | "
        f"{figure.task_milliseconds:.1f} | {figure.whole:.1f} |"
    )


def _table(figures: list[Figure]) -> str:
    head = "| clients | system | round 1, s | round 2, s | round 3, s | ms a task | whole run, s |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *map(_row, figures)])


if __name__ == "__main__":
    main()
