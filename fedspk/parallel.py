"""Many jobs on few processes: spawned workers with one torch thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch

from fedspk.errors import FedspkError
from fedspk.signals import end_cleanly_on_sigterm, workers_deaf_to_ctrl_c

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int
) -> Iterator[tuple[Job, Result]]:
    """Yield (job, result) as they finish; `workers` <= 1 runs them here, one after the other.

    `function` and the jobs must be picklable. An error, or Ctrl-C, cancels what has not begun.

    Raises:
        FedspkError: a worker process was killed.
    """
    if workers <= 1 or len(jobs) <= 1:
        with one_torch_thread():
            for job in jobs:
                yield job, function(job)
        return
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare_worker,
    )
    try:
        with workers_deaf_to_ctrl_c():
            waiting = {pool.submit(function, job): job for job in jobs}
        for done in as_completed(waiting):
            yield waiting.pop(done), done.result()
    except BrokenProcessPool as error:
        raise FedspkError(
            "A worker process was killed, perhaps for lack of memory; use fewer workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run the block on one torch thread: small tensors lose by sharing, much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare_worker() -> None:
    end_cleanly_on_sigterm()
    torch.set_num_threads(1)
