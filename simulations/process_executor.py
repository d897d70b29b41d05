"""Long-lived worker processes, spawned once and fed one task at a time through a pipe."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from typing import Any, cast

from fedspk.errors import FedspkError
from fedspk.signals import end_cleanly_on_sigterm, workers_deaf_to_ctrl_c
from simulations.executors import (
    THREAD_VARIABLES,
    Executor,
    Item,
    Result,
    environment,
)

_FAREWELL_SECONDS = 5.0


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection

    def end(self, *, at_once: bool) -> None:
        if self.pipe.closed:
            return
        self.pipe.close()
        if at_once:
            self.process.terminate()
        self.process.join(_FAREWELL_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


class ProcessExecutor(Executor):
    """`workers` processes of this machine, started at the first task.

    A worker that dies (killed for memory, say) costs its task, which yields a `FedspkError`; a
    fresh worker takes its place.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._idle: list[_Worker] = []
        self._started: list[_Worker] = []

    def attempt(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result | Exception]:
        waiting = enumerate(items)
        busy: dict[connection.Connection, tuple[_Worker, int]] = {}
        done: dict[int, Result | Exception] = {}
        following = 0
        try:
            while True:
                self._feed(function, waiting, busy, done)
                while following in done:
                    yield done.pop(following)
                    following += 1
                if not busy:
                    return
                for ready in connection.wait(list(busy)):
                    pipe = cast("connection.Connection", ready)
                    worker, index = busy.pop(pipe)
                    done[index] = self._receive(worker)
        finally:
            for worker, _ in busy.values():
                worker.end(at_once=True)

    def close(self) -> None:
        for worker in self._idle:
            worker.end(at_once=False)
        for worker in self._started:  # what is left works for an iteration that was given up
            worker.end(at_once=True)
        self._idle.clear()
        self._started.clear()

    def _feed(
        self,
        function: Callable[[Any], Any],
        waiting: Iterator[tuple[int, Any]],
        busy: dict[connection.Connection, tuple[_Worker, int]],
        done: dict[int, Any],
    ) -> None:
        while len(busy) < self.workers:
            index, item = next(waiting, (-1, None))
            if index < 0:
                return
            try:
                task = pickle.dumps((function, item), protocol=pickle.HIGHEST_PROTOCOL)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                done[index] = error
                continue
            worker = self._idle.pop() if self._idle else self._new_worker()
            busy[worker.pipe] = (worker, index)
            try:
                worker.pipe.send_bytes(task)
            except OSError:
                del busy[worker.pipe]
                done[index] = _loss(worker)

    def _new_worker(self) -> _Worker:
        self._started = [worker for worker in self._started if not worker.pipe.closed]
        self._started.append(_start())
        return self._started[-1]

    def _receive(self, worker: _Worker) -> Any:
        try:
            answer = worker.pipe.recv_bytes()
        except (EOFError, OSError):
            return _loss(worker)
        self._idle.append(worker)
        return pickle.loads(answer)


def _start() -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), name="fedspk-worker", daemon=True)
    with environment(**dict.fromkeys(THREAD_VARIABLES, "1")), workers_deaf_to_ctrl_c():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _loss(worker: _Worker) -> FedspkError:
    worker.process.join(_FAREWELL_SECONDS)
    code = worker.process.exitcode
    worker.end(at_once=True)
    return FedspkError(
        f"A worker process died (exit code {code}); if memory ran out, use fewer workers."
    )


def _work(pipe: connection.Connection) -> None:
    end_cleanly_on_sigterm()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    while True:
        try:
            task = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        pipe.send_bytes(_answer(task))


def _die_with_parent() -> None:
    """End this process in the middle of a task when the parent was killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_FAREWELL_SECONDS)
        os._exit(1)


def _answer(task: bytes) -> bytes:
    try:
        function, item = pickle.loads(task)
        return pickle.dumps(function(item), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return _pickled_error(error)


def _pickled_error(error: Exception) -> bytes:
    try:
        answer = pickle.dumps(error)
        pickle.loads(answer)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return answer
