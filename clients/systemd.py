"""systemd: telling it how the service is, and the unit that it runs.

The protocol is that of sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names.
"""

from __future__ import annotations

import os
import socket
import sys
from importlib.resources import files
from pathlib import Path


def notify(message: str) -> None:
    """Tell systemd, e.g. "READY=1"; without it nothing happens.

    Raises:
        OSError: the socket does not take it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # in the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.sendall(message.encode())


def watchdog_s() -> float | None:
    """Return within how many seconds systemd wants to hear of this process; None if never."""
    period = os.environ.get("WATCHDOG_USEC", "")
    is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(period) / 1e6 if period.isascii() and period.isdigit() and is_ours else None


def unit() -> str:
    """Return the text of the service's unit, for the `fedspk` that belongs to this Python."""
    text = (files("clients") / "fedspk-device.service").read_text(encoding="utf-8")
    return text.replace("@fedspk@", str(Path(sys.executable).with_name("fedspk")))
