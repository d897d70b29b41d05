"""Ctrl-C ends the program with one line; its workers do not hear it and end cleanly when told."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
INTERRUPTED_LINE = "fedspk: interrupted; nothing is half written."


@contextmanager
def workers_deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes in the block: none of them ever sees Ctrl-C, from its first instruction on.

    Here Ctrl-C takes effect at the end of the block, so that no process is left half started.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its start would let the signal through
    heard: list[tuple[int, FrameType | None]] = []
    try:
        before = signal.signal(signal.SIGINT, lambda *call: heard.append(call))
    except ValueError:  # not in the main thread, where signals are handled
        before = None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is not None:
            signal.signal(signal.SIGINT, before)
        if heard and callable(before):
            before(*heard[0])


@contextmanager
def stopped_by(*signals: signal.Signals) -> Iterator[threading.Event]:
    """Give an event that is set when one of the signals comes, which does nothing else.

    Wait for it with a timeout, again and again: a signal that comes just before the main thread
    falls asleep does not wake it.
    """
    stop = threading.Event()

    def set_stop(*_: object) -> None:
        # In a thread: the main one may hold the event's lock in this very moment.
        threading.Thread(target=stop.set, name="stop").start()

    before = {number: signal.signal(number, set_stop) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quit_on_ctrl_c_in_imports() -> None:
    """Let Ctrl-C end the program at once while it imports, and raise KeyboardInterrupt elsewhere.

    An exception that falls into the import of a compiled library aborts the process or turns into
    a traceback of that library's.
    """

    def interrupt(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os.write(2, f"{INTERRUPTED_LINE}\n".encode())
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def end_cleanly_on_sigterm() -> None:
    """Let this worker process run its `finally` blocks when it is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
