"""What every run of Flower on this machine needs: quiet, ports of its own, and an end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from fedspk.errors import FedspkError

ConfigValue = bool | int | float | str

_FAREWELL_SECONDS = 10.0
_FAILED = "Exit Code:"


def config_text(values: Mapping[str, ConfigValue]) -> str:
    """Return settings as Flower's command line takes them: `name=value` pairs in TOML."""
    parts = []
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        parts.append(f"{name}='{text}'" if isinstance(value, str) else f"{name}={text}")
    return " ".join(parts)


def check_run(returncode: int, log: str) -> None:
    """Check what `flwr run --stream` came to.

    Raises:
        FedspkError: the run failed; the command itself succeeds even then.
    """
    if returncode != 0 or _FAILED in log:
        raise FedspkError(f"flwr run failed: {' '.join(log.split())[-2000:]}")


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def processes_named(words: Iterable[str]) -> set[int]:
    """Return the processes whose command line has all these words."""
    table = _processes()
    return {pid for pid, (*_, command) in table.items() if all(w in command for w in words)}


def family_of(ancestors: set[int]) -> set[int]:
    """Return processes with all their descendants."""
    table = _processes()
    family, grown = set(ancestors), True
    while grown:
        children = {pid for pid, (parent, *_) in table.items() if parent in family}
        grown = not children <= family
        family |= children
    return family


def end_processes(ids: set[int]) -> None:
    """End processes; minus the id of a process group stands for all that are in it."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        for each in ids:
            send_signal(each, ending)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while (ids := ids & _living()) and time.monotonic() < deadline:
            time.sleep(0.05)


def send_signal(process: int, number: signal.Signals) -> None:
    """Signal a process, or minus a process group, that may have ended."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _living() -> set[int]:
    table = _processes()
    return {*table, *(-group for _, group, _ in table.values())}


def _processes() -> dict[int, tuple[int, int, str]]:
    """Return parent, group and command line of every process that has not ended yet, by id."""
    listing = subprocess.run(
        ["ps", "-axww", "-o", "pid=,ppid=,pgid=,stat=,command="],
        capture_output=True,
        text=True,
        check=True,
    )
    table = {}
    for line in listing.stdout.splitlines():
        pid, parent, group, state, command = line.split(None, 4)
        if not state.startswith("Z"):
            table[int(pid)] = (int(parent), int(group), command)
    return table
