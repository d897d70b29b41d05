"""The running device follows its main server: its update process dies, the server hangs."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import quick_update_process
from bent_server import BentServer
from following_device import new_follower
from small_server import small_server
from toy_device import THRESHOLDS, new_device, voice
from version_repository import publish, root_of

from clients import update_process
from clients.followed import MainServer, read_check, write_server
from clients.recogniser import Recogniser
from clients.registration import register
from clients.service import run_service
from clients.update_process import UpdateEndedError, UpdateProcess
from fedspk.errors import FedspkError
from server.creation import create
from server.repository import Repository

TOKEN = "fedspk-token-0123456789abcdef"
ROOT = {"PYTHONPATH": str(Path(__file__).parents[2])}


pytestmark = pytest.mark.usefixtures("quickly")


@contextmanager
def running(device: Recogniser, path: Path, poll_s: float) -> Iterator[None]:
    """Serve and follow in a thread until the block ends."""
    stop = threading.Event()
    arguments = (device._vault, path, poll_s, stop, random.Random(1))
    thread = threading.Thread(target=run_service, args=arguments)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_update_process_is_told_and_made_up_for(
    tmp_path: Path,
    server: BentServer,
    repository: Repository,
    followed: MainServer,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = new_follower(tmp_path / "home", followed)
    publish(repository, models[1])
    children = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, _: object, **options: Any) -> None:
            program = [sys.executable, quick_update_process.__file__]
            super().__init__(program, env=os.environ | ROOT, **options)
            children.append(self)

    monkeypatch.setattr(update_process.subprocess, "Popen", Recorded)
    held = threading.Event()

    def hold(path: str, _: object) -> None:
        if path.endswith("model.safetensors") and not held.is_set():
            held.set()
            wait_for(lambda: children[0].returncode is not None)

    server.bend = hold
    with small_server(TOKEN) as main_server:
        register(device._vault, main_server.address, TOKEN)
        with running(device, tmp_path / "s", 1.0):
            assert held.wait(60)
            children[0].send_signal(signal.SIGKILL)
            wait_for(lambda: len(children) > 1)
            last = read_check(device._vault)
            assert last is not None
            assert last.trouble is not None
            assert (last.trouble.failure, last.trouble.version) == ("other", 2)
            assert "was killed" in last.trouble.sentence
            assert device.verify("anna", voice(0, 7), THRESHOLDS[1]).accepted
            wait_for(lambda: main_server.reports and main_server.reports[-1].version == 2)
        states = [(each.version, each.state) for each in main_server.reports]
        failed = next(each for each in main_server.reports if each.state == "failed")
    assert (failed.failure, failed.attempted) == ("other", 2)
    assert states[-1] == (2, "serving")
    last = read_check(device._vault)
    assert last is not None
    assert last.trouble is None
    device.follow()
    assert device.versions.current.number == 2
    assert device.verify("anna", voice(0, 7), THRESHOLDS[1]).accepted


def test_a_dead_follower_is_not_called_alive(
    tmp_path: Path, followed: MainServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = new_follower(tmp_path / "home", followed)
    monkeypatch.setattr("clients.follower.Follower.run", lambda _: None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        with running(device, tmp_path / "s", 3600):
            assert systemd.recv(100) == b"READY=1"
            systemd.settimeout(0.3)
            with pytest.raises(TimeoutError):
                systemd.recv(100)


def test_a_look_that_hangs_is_not_called_alive(
    tmp_path: Path, followed: MainServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = new_follower(tmp_path / "home", followed)
    looks, goes_on = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        looks.set()
        goes_on.wait(20)

    monkeypatch.setattr("clients.updater.Updater.look", hang)
    monkeypatch.setattr("clients.schedule.Schedule.first", lambda _: 0.0)
    monkeypatch.setattr("clients.follower.LONGEST_S", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        with running(device, tmp_path / "s", 3600):
            assert looks.wait(20)
            systemd.settimeout(1.0)
            with pytest.raises(TimeoutError):
                for _ in range(30):
                    systemd.recv(100)
            goes_on.set()
            assert systemd.recv(100) == b"WATCHDOG=1"


def test_a_stopped_update_is_not_counted_against_the_version(tmp_path: Path) -> None:
    process = UpdateProcess(new_device(tmp_path / "home")._vault)
    process.stop()
    with pytest.raises(FedspkError, match="told to end") as stopped:
        process.run(lambda _: None)
    assert not isinstance(stopped.value, UpdateEndedError)


@pytest.mark.slow
def test_the_command_ends_soon_though_the_main_server_hangs(
    tmp_path: Path, where: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the command derives keys as it always does
    vault = new_device(tmp_path / "home")._vault
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        hanging.settimeout(60)
        address = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        create(tmp_path / "versions")
        with vault.writing():
            write_server(vault, MainServer(address, root_of(Repository(tmp_path / "versions"))))
        command = [sys.executable, "-m", "fedspk", "device", "run", *where, "--poll", "1"]
        with subprocess.Popen(command, env=os.environ | ROOT) as process:
            connection = hanging.accept()[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            connection.close()
