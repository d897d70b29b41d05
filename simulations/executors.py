"""Where tasks run: in this process, in spawned worker processes, or in Ray actors.

`map` gives results in the order of the items whoever computes them, so that what is summed is
summed in one order. Every worker computes with one thread: floating-point sums then do not depend
on the number of cores either. No executor leaves a process behind, Ctrl-C included.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, Self, TypeVar

from fedspk.errors import FedspkError

Item = TypeVar("Item")
Result = TypeVar("Result")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Executor(ABC):
    """A place for tasks; a context manager that ends its workers."""

    workers: int

    @abstractmethod
    def attempt(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result | Exception]:
        """Yield, in the order of `items`, each result or the exception that took its place.

        `function` is a module-level function; items and results are picklable.
        """

    @abstractmethod
    def close(self) -> None:
        """End the workers; calling it again does nothing."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(item)` in the order of `items`; a task's exception is raised here."""
        for outcome in self.attempt(function, items):
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SerialExecutor(Executor):
    """Tasks run here, one after the other."""

    workers = 1

    def attempt(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result | Exception]:
        from fedspk.parallel import one_torch_thread

        for item in items:
            with one_torch_thread():
                try:
                    outcome: Result | Exception = function(item)
                except Exception as error:
                    outcome = error
            yield outcome

    def close(self) -> None:
        pass


def open_executor(
    backend: Literal["inprocess", "ray"], *, workers: int | None = None, address: str | None = None
) -> Executor:
    """Return the executor of a back end; `workers` None means one for each CPU.

    Args:
        backend: `inprocess` for this machine's processes (one worker: this very process), `ray`
            for Ray actors.
        workers: how many tasks run at a time.
        address: a Ray cluster's; None starts Ray on this machine and ends it at `close`.

    Raises:
        FedspkError: the number of workers is not positive, or the Ray cluster does not answer.
    """
    if workers is not None and workers < 1:
        raise FedspkError(f"The number of workers is {workers}; give 1 or more.")
    if backend == "ray":
        from simulations.ray_executor import RayExecutor

        return RayExecutor(workers=workers, address=address)
    if address is not None:
        raise FedspkError("A cluster address needs the back end 'ray'.")
    workers = workers or usable_cpus()
    if workers == 1:
        return SerialExecutor()
    from simulations.process_executor import ProcessExecutor

    return ProcessExecutor(workers)


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def environment(**changes: str) -> Iterator[None]:
    """Set environment variables for the processes that are started in the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
