"""A device's SuperNode and its folder in memory end with the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.memory_folder import memory_folder

_COMMAND = """
import sys, threading
from clients import supernode
from clients.memory_folder import memory_folder

sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
with memory_folder() as folder:
    print(folder, flush=True)
    supernode._run([sys.executable, "-c", sleeper], folder, threading.Event())
"""


@pytest.fixture
def command() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_a_killed_command_leaves_no_process_and_no_folder(
    command: subprocess.Popen[str],
) -> None:
    assert command.stdout is not None
    folder, pid = Path(command.stdout.readline().strip()), int(command.stdout.readline())
    with memory_folder():  # another command deletes nothing that is in use
        assert folder.is_dir() and not has_ended(pid)
    os.kill(command.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while not has_ended(pid) or folder.exists():
        assert time.monotonic() < end, (has_ended(pid), folder.exists())
        time.sleep(0.05)


def test_a_folder_is_in_use_as_long_as_somebody_shares_its_lock(tmp_path: Path) -> None:
    with memory_folder() as folder:
        left = folder.with_name(folder.name + "-left")
        left.mkdir(mode=0o700)
        (left / "lock").write_bytes(b"locked\n")
        holder = subprocess.Popen(
            ["flock", "--shared", str(left / "lock"), "sh", "-c", "echo; sleep 60"],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        with memory_folder():
            assert left.is_dir()
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
        with memory_folder():
            assert not left.exists()
