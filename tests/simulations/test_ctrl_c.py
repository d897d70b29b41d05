"""Ctrl-C, which the terminal sends to the whole process group, ends a simulation with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_COMMAND = "-m fedspk simulate --corpus synthetic:speakers=8,utterances=10,sessions=2 --devices 3"


@pytest.mark.parametrize(
    "seconds",
    [
        0.5,
        2.0,
        pytest.param(6.0, marks=pytest.mark.slow),
        pytest.param(15.0, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_at_any_time_is_one_line_and_no_unfinished_file(tmp_path: Path, seconds: float):
    command = [sys.executable, *_COMMAND.split(), "--preset", "quick", "--workers", "2"]
    command += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        time.sleep(seconds)
        os.killpg(program.pid, signal.SIGINT)
        _, errors = program.communicate(timeout=60)
    assert program.returncode == 130, errors
    assert "Traceback" not in errors
    last = errors.replace("\r", "\n").strip().splitlines()[-1]
    assert last == "fedspk: interrupted; nothing is half written."
    assert not list(tmp_path.rglob(".*.partial"))
