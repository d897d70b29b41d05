"""Workers do not hear Ctrl-C; the program hears it once they stand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from fedspk.signals import stopped_by, workers_deaf_to_ctrl_c

_INTERRUPT_ME = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('lives')"


def test_a_process_started_in_the_block_is_deaf_from_its_start() -> None:
    command = [sys.executable, "-c", _INTERRUPT_ME]
    with workers_deaf_to_ctrl_c():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "lives\n", "")


def test_ctrl_c_in_the_block_takes_effect_at_its_end() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), workers_deaf_to_ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_block_works_in_another_thread() -> None:
    done: list[str] = []

    def work() -> None:
        with workers_deaf_to_ctrl_c():
            done.append("yes")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["yes"]


def test_a_signal_stops_the_block_and_is_as_before_after_it() -> None:
    with pytest.raises(RuntimeError), stopped_by(signal.SIGINT, signal.SIGTERM) as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.wait(10)
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
