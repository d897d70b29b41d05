"""Ray actors: on this machine, or on a cluster by its address."""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fedspk.errors import FedspkError
from simulations.executors import (
    THREAD_VARIABLES,
    Executor,
    Item,
    Result,
    environment,
    usable_cpus,
)

_OBJECT_STORE_BYTES = 128 << 20  # tasks carry hashes; arrays are in files
_KNOCK_SECONDS = 10.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_LOGGER_LEVEL": "error",
}


class RayExecutor(Executor):
    """`workers` actors with one CPU each.

    Without an address Ray starts on this machine at the first task and ends at `close`; a Ray
    that the caller has initialised already, or a cluster, is left as it was found. On a cluster
    fedspk and the folders of data must be there on every machine.

    Raises:
        FedspkError: (at the first task) the cluster does not answer.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        self._address = address
        self._owns_ray = False
        self._actors: list[Any] = []
        self._wanted = workers
        self.workers = workers or usable_cpus()

    def attempt(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result | Exception]:
        import ray

        self._start()
        waiting = iter(items)
        free = deque(self._actors)
        order: deque[Any] = deque()
        running: dict[Any, Any] = {}
        try:
            while True:
                while free and (item := next(waiting, _END)) is not _END:
                    actor = free.popleft()
                    order.append(actor.run.remote(function, item))
                    running[order[-1]] = actor
                if not order:
                    return
                finished, _ = ray.wait(list(running), num_returns=1)
                for reference in finished:
                    free.append(running.pop(reference))
                while order and order[0] not in running:
                    yield self._outcome(order.popleft())
        finally:
            if running:
                self._end_actors()

    def close(self) -> None:
        if not self._actors and not self._owns_ray:
            return
        import ray

        self._end_actors()
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False

    def _start(self) -> None:
        if self._actors:
            return
        with environment(**_QUIET, **dict.fromkeys(THREAD_VARIABLES, "1")):
            import ray as untyped

            ray: Any = untyped
            if not ray.is_initialized():
                self._initialise(ray)
            if self._address is not None and self._wanted is None:
                self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
            actor = ray.remote(num_cpus=1, max_restarts=-1)(_Actor)
            self._actors = [actor.remote() for _ in range(self.workers)]

    def _initialise(self, ray: Any) -> None:
        common = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": True,
        }
        try:
            if self._address is not None:
                _knock(self._address)
                ray.init(address=self._address, **common)
            else:
                ray.init(
                    address="local",
                    num_cpus=self.workers,
                    num_gpus=0,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **common,
                )
        except (OSError, RuntimeError, ValueError) as error:
            place = self._address or "this machine"
            raise FedspkError(f"Ray cannot be reached at {place}: {error}.") from error
        self._owns_ray = True

    def _end_actors(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _outcome(self, reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else error
        except ray.exceptions.RayError as error:
            return FedspkError(
                f"A Ray worker died ({type(error).__name__}); if memory ran out, use fewer workers."
            )


def _knock(address: str) -> None:
    """Raise an OSError unless something listens at host:port: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


_END: Any = object()


class _Actor:
    """Runs tasks one at a time, with one thread."""

    def __init__(self) -> None:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))

    def run(self, function: Callable[[Any], Any], item: Any) -> Any:
        return function(item)
