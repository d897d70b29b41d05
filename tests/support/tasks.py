"""Tasks for executors: workers import them from here."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fedspk.files import atomic_write


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number


def slow_when_small(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0.0)
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def threads(_: int) -> int:
    import torch

    return torch.get_num_threads()


def pid(_: int) -> int:
    return os.getpid()


def pid_then_sleep(number: int) -> int:
    time.sleep(60 if number else 0)
    return os.getpid()


def report_and_sleep(path: str) -> None:
    temporary = Path(f"{path}.new")
    temporary.write_text(str(os.getpid()))
    temporary.replace(path)
    time.sleep(120)


def write_and_sleep(path: str) -> None:
    with atomic_write(Path(path)) as file:
        file.write(b"half")
        file.flush()
        time.sleep(60 if path.endswith("slow") else 0)
