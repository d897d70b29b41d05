from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import tasks

from fedspk.errors import FedspkError
from simulations.executors import SerialExecutor, open_executor
from simulations.flower_processes import free_ports
from simulations.process_executor import ProcessExecutor

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_processes():
    with ProcessExecutor(2) as executor:
        yield executor


def test_results_come_in_the_order_of_the_items(two_processes):
    assert list(two_processes.map(tasks.slow_when_small, range(6))) == list(range(6))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_takes_the_place_of_its_result(workers, two_processes):
    executor = two_processes if workers == 2 else SerialExecutor()
    first, second, third = executor.attempt(tasks.square, [2, -1, 3])
    assert (first, third) == (4, 9)
    assert isinstance(second, ValueError)
    assert str(second) == "-1 is negative"


def test_map_raises_the_task_s_exception_and_the_executor_goes_on(two_processes):
    with pytest.raises(ValueError, match="negative"):
        list(two_processes.map(tasks.square, [1, -1, 2, 3]))
    assert list(two_processes.map(tasks.square, [5])) == [25]


def test_a_dying_worker_costs_its_task_only(two_processes):
    outcomes = list(two_processes.attempt(tasks.die_at_three, range(6)))
    assert [o for o in outcomes if isinstance(o, int)] == [0, 1, 2, 4, 5]
    assert isinstance(outcomes[3], FedspkError)
    assert "exit code 9" in str(outcomes[3])


def test_an_unpicklable_item_is_an_error_in_its_place(two_processes):
    bad, good = two_processes.attempt(tasks.square, [lambda: 0, 3])
    assert isinstance(bad, Exception)
    assert good == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_every_worker_computes_with_one_thread(workers):
    with open_executor("inprocess", workers=workers) as executor:
        assert set(executor.map(tasks.threads, range(3))) == {1}


def test_closing_ends_the_workers():
    with ProcessExecutor(2) as executor:
        pids = set(executor.map(tasks.pid, range(8)))
    assert os.getpid() not in pids
    assert not any(_is_alive(pid) for pid in pids)


def test_closing_ends_workers_whose_results_nobody_waits_for():
    with ProcessExecutor(2) as executor:
        given_up = executor.map(tasks.pid_then_sleep, range(4))
        busy = next(given_up)
        started = time.monotonic()
    assert time.monotonic() - started < 20
    assert not _is_alive(busy)


def test_a_worker_that_is_ended_takes_its_unfinished_file_with_it(tmp_path):
    with ProcessExecutor(2) as executor:
        given_up = executor.map(tasks.write_and_sleep, [f"{tmp_path}/quick", f"{tmp_path}/slow"])
        next(given_up)
        assert _eventually(lambda: len(list(tmp_path.glob(".slow.*.partial"))) == 1)
    assert [path.name for path in tmp_path.iterdir()] == ["quick"]


def test_wrong_numbers_of_workers_and_wrong_addresses_are_refused():
    with pytest.raises(FedspkError, match="give 1 or more"):
        open_executor("inprocess", workers=0)
    with pytest.raises(FedspkError, match="needs the back end 'ray'"):
        open_executor("inprocess", address="10.0.0.1:6379")


_INTERRUPTED = """
import os, sys, time
from simulations.flower_processes import free_ports
from simulations.process_executor import ProcessExecutor

def sleep(_):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)

if __name__ == "__main__":
    with ProcessExecutor(2) as executor:
        list(executor.map(sleep, range(4)))
"""


def test_ctrl_c_ends_the_workers(tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(_INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        workers = [int(program.stdout.readline()) for _ in range(2)]
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait(timeout=20) != 0
    assert not any(_is_alive(pid) for pid in workers)


@pytest.mark.slow
def test_ray_gives_the_same_outcomes_quietly_and_leaves_nothing(tmp_path):
    script = tmp_path / "on_ray.py"
    script.write_text(
        "from simulations.executors import open_executor\n"
        "import ray, tasks as t\n"
        "if __name__ == '__main__':\n"
        "    with open_executor('ray', workers=2) as executor:\n"
        "        assert list(executor.map(t.slow_when_small, range(6))) == list(range(6))\n"
        "        four, error = executor.attempt(t.square, [2, -1])\n"
        "        assert (four, type(error), str(error)) == (4, ValueError, '-1 is negative')\n"
        "        assert set(executor.map(t.threads, range(3))) == {1}\n"
        "    assert not ray.is_initialized()\n"
    )
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "tests" / "support")])
    before = _ray_processes()
    program = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (program.returncode, program.stdout, program.stderr) == (0, "", "")
    assert _ray_processes() <= before


@pytest.mark.slow
def test_a_ray_cluster_that_does_not_answer_is_one_clear_error():
    with (
        open_executor("ray", workers=1, address="127.0.0.1:1") as executor,
        pytest.raises(FedspkError, match="Ray cannot be reached at"),
    ):
        list(executor.map(tasks.square, [1]))


@pytest.mark.slow
def test_a_ray_cluster_is_used_by_its_address_and_left_running(monkeypatch):
    folder = tempfile.TemporaryDirectory(prefix="ray-")  # a short name for Ray's sockets
    monkeypatch.setenv("RAY_TMPDIR", folder.name)
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    cluster = subprocess.Popen(
        [*command, "--disable-usage-stats"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(_ROOT / "tests" / "support")},
    )
    try:
        _wait_for(port)
        with open_executor("ray", address=f"127.0.0.1:{port}") as executor:
            assert list(executor.map(tasks.square, range(5))) == [0, 1, 4, 9, 16]
            assert set(executor.map(tasks.threads, range(3))) == {1}
        assert cluster.poll() is None
    finally:
        cluster.terminate()
        cluster.wait(timeout=30)
        folder.cleanup()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return


@pytest.mark.slow
def test_ctrl_c_ends_ray_too(tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(
        _INTERRUPTED.replace(
            "from simulations.process_executor import ProcessExecutor",
            "from simulations.ray_executor import RayExecutor as ProcessExecutor",
        ).replace("os.write(1,", f"open({str(tmp_path / 'pids')!r}, 'ab').write(")
    )
    before = _ray_processes()
    with subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        start_new_session=True,
    ) as program:
        deadline = time.monotonic() + 90
        while not (tmp_path / "pids").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait(timeout=60) != 0
    assert (tmp_path / "pids").exists()
    assert _ray_processes() <= before


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def _ray_processes() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if "raylet" in command or "gcs_server" in command:
            found.add(int(folder.name))
    return found


def test_workers_die_with_a_killed_parent(tmp_path):
    script = (
        "import os, sys, time, signal\n"
        "from simulations.process_executor import ProcessExecutor\n"
        "from tasks import report_and_sleep\n"
        "if __name__ == '__main__':\n"
        "    list(ProcessExecutor(1).map(report_and_sleep, [sys.argv[1]]))\n"
    )
    (tmp_path / "main.py").write_text(script)
    written = tmp_path / "pid"
    path = os.pathsep.join([str(Path(tasks.__file__).parent), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), str(written)],
        env={**os.environ, "PYTHONPATH": path},
    )
    worker = int(_eventually(lambda: written.read_text() if written.exists() else ""))
    parent.kill()
    parent.wait()
    assert _eventually(lambda: "gone" if not Path(f"/proc/{worker}").exists() else "")


def _eventually(ask, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.1)
    return ""
