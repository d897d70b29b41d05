"""The main server in a process of its own, which can be killed before any of its writes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from server.keyring import at_hand
from server.registry import Registry
from server.repository import Repository
from server.running import Listening, serve
from server.service import Service

# A copy of this process has imported everything already.
_PROCESSES = multiprocessing.get_context("fork")

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@contextmanager
def mortal_server(folder: Path, kill_at: int = 0) -> Iterator[tuple[str, BaseProcess]]:
    """Yield the address and the process of a server that has signed its timestamp again.

    Args:
        folder: of the repository.
        kill_at: of all changes of files in the folder, the one that the server does not live to
            see, counted from the first upload on; 0 for none.
    """
    timestamp = folder / "public" / "metadata" / "timestamp.json"
    before = timestamp.read_bytes()
    ours, theirs = _PROCESSES.Pipe()
    process = _PROCESSES.Process(target=_serve, args=(folder, theirs, kill_at))
    process.start()
    theirs.close()
    try:
        address = ours.recv()
        latest = time.monotonic() + 20
        while timestamp.read_bytes() == before:
            assert time.monotonic() < latest, "the server did not sign its timestamp again"
            time.sleep(0.01)
        yield address, process
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, started: Connection, kill_at: int) -> None:
    repository = Repository(folder)
    service = Service(repository, Registry.of(folder), at_hand(repository.keys, [], None))
    if kill_at:
        sys.addaudithook(_Killer(folder, kill_at))
    serve(service, Listening("127.0.0.1", 0), started.send)


class _Killer:
    """Python tells this of every change of a file before it is made."""

    def __init__(self, folder: Path, kill_at: int) -> None:
        self._folder, self._left, self._is_armed = str(folder), kill_at, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        )
        if not is_write or not str(arguments[0]).startswith(self._folder):
            return
        self._is_armed = self._is_armed or "uploads" in str(arguments[0])
        self._left -= self._is_armed
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
