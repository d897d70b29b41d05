"""Runs a command for a process that may die: then the command ends too, and its folder is deleted.

Started by `clients.supernode` in a session of its own, with the reading end of a pipe whose other
end that process holds: at its death, of whatever cause, the pipe closes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

FAREWELL_S = 10.0
"""How long the command may take to end by itself."""


def keep(pipe: int, folder: Path, command: list[str]) -> int:
    """Run a command until it ends, or until a pipe closes; return the command's exit code.

    Args:
        pipe: descriptor to read from.
        folder: of `clients.memory_folder`; it stays locked until the command has ended.
        command: its processes must be all of this process's group.
    """
    with (folder / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        process = subprocess.Popen(command)
        signal.signal(signal.SIGTERM, lambda *_: None)  # it goes to the group: the command ends
        orphaned = threading.Event()
        last = threading.Thread(
            target=_outlive, args=(pipe, folder, process, orphaned), daemon=True
        )
        last.start()
        code = process.wait()
        if orphaned.is_set():
            last.join()
        return code


def _outlive(
    pipe: int, folder: Path, process: subprocess.Popen[bytes], orphaned: threading.Event
) -> None:
    """Wait for the other end's death, and end everything."""
    os.read(pipe, 1)
    orphaned.set()
    os.killpg(0, signal.SIGTERM)
    try:
        process.wait(FAREWELL_S)
    except subprocess.TimeoutExpired:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
