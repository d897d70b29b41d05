"""Many runs over processes, reduced where they ran: the same result for any number of processes.

Runs are put into batches of one size whoever computes them, and batches are added up in order, so
that even sums of floating-point numbers come out the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from simulations.versioning.config import VersioningConfig
from simulations.versioning.results import Batch, reduce_run

_BATCH_RUNS = 10

Progress: TypeAlias = Callable[[int], object]


@dataclass(frozen=True)
class _Task:
    point: int
    config: VersioningConfig
    strategy: str
    runs: range


def simulate_all(
    configs: Sequence[VersioningConfig], *, jobs: int, progress: Progress | None = None
) -> list[dict[str, Batch]]:
    """Return, for each configuration, every one of its strategies' runs in one batch.

    Args:
        configs: each with its own strategies and number of runs.
        jobs: how many processes; 1 runs everything in this one.
        progress: is told of so many runs done.

    Raises:
        FedspkError: a configuration makes no sense to a strategy, or a process was killed.
    """
    tasks = [
        _Task(point, config, strategy, range(start, min(start + _BATCH_RUNS, config.runs)))
        for point, config in enumerate(configs)
        for strategy in config.strategies
        for start in range(0, config.runs, _BATCH_RUNS)
    ]
    found: list[dict[str, Batch]] = [{} for _ in configs]
    with _mapped(tasks, min(jobs, len(tasks))) as batches:
        for task, batch in zip(tasks, batches, strict=True):
            so_far = found[task.point].setdefault(task.strategy, batch)
            if so_far is not batch:
                so_far.add(batch)
            if progress is not None:
                progress(len(task.runs))
    return found


@contextmanager
def _mapped(tasks: Sequence[_Task], jobs: int) -> Iterator[Iterator[Batch]]:
    if jobs <= 1:
        yield map(_run_batch, tasks)
        return
    from simulations.executors import open_executor

    with open_executor("inprocess", workers=jobs) as executor:
        yield executor.map(_run_batch, tasks)


def _run_batch(task: _Task) -> Batch:
    from simulations.versioning.run import simulate

    whole: Batch | None = None
    for run in task.runs:
        batch = reduce_run(simulate(task.config, task.strategy, run), first=run == 0)
        if whole is None:
            whole = batch
        else:
            whole.add(batch)
    assert whole is not None  # a task has one run or more
    return whole
