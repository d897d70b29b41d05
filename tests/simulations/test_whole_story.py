"""The whole story, by the commands that a user types: two versions trained, published, followed.

Train version 1 in a simulation, publish it, enrol and verify on two devices; train version 2 and
publish it: the devices follow by themselves while they keep answering; roll back: they follow.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import soundfile
from unix_client import asked

from fedspk.audio import SAMPLE_RATE
from fedspk.corpora.opening import open_corpus

_VOICES = "synthetic:speakers=40,utterances=15,sessions=3"
_TRAINING = ["--preset", "quick", "--devices", "8", "--arms", "federated", "--corpus", _VOICES]
_USERS = {"kitchen": "voice00001", "door": "voice00003"}  # of each device, by their voices
_ENROLMENT, _TESTED = 6, 10  # utterances of a speaker: so many to enrol with, one to verify
_PATIENCE_S = 120.0


@pytest.mark.slow
def test_devices_follow_every_version_and_never_stop_answering(tmp_path: Path) -> None:
    first = _trained(tmp_path / "run-1", "--rounds", "80")
    versions, public = tmp_path / "versions", tmp_path / "versions" / "public"
    _fedspk("server", "init", versions)
    _publish(versions, first)
    with ExitStack() as open_things:
        address = open_things.enter_context(_server(versions))
        devices = {
            name: _device(tmp_path, name, address, public / "metadata" / "1.root.json", versions)
            for name in _USERS
        }
        for device in devices.values():
            _knows_its_user(device, devices)
        second = _trained(tmp_path / "run-2", "--rounds", "40", "--init", first)

        for device in devices.values():
            open_things.enter_context(_running(device))
        callers = [open_things.enter_context(_calling(each)) for each in devices.values()]
        _wait("version 1 is reported", lambda: _fleet(versions) == {1: 2})
        before = _model(devices["kitchen"])

        _publish(versions, second)
        _wait("version 2 is reported", lambda: _fleet(versions) == {2: 2})
        after = _model(devices["kitchen"])
        assert after != before

        _fedspk("server", "rollback", versions, "--to", "1")
        _wait("version 3 is reported", lambda: _fleet(versions) == {3: 2})
        assert _model(devices["kitchen"]) == before
        assert _status(devices["kitchen"])["previous"] == after

    for device, caller in zip(devices.values(), callers, strict=True):
        assert caller.failures == []
        assert len(caller.seconds) > 50
        # Each model has one score of the same sound: no profile was ever scored under another.
        assert set(caller.scores) == {before, after}
        assert all(len(scores) == 1 for scores in caller.scores.values()), caller.scores
        _knows_its_user(device, devices)
        print(f"{device.name}: {_told(caller.seconds)}")  # noqa: T201


@dataclass
class _Device:
    name: str
    home: Path
    passphrase: Path
    recordings: list[Path]
    test: Path

    def run(self, command: str, *arguments: object, expect: int = 0) -> str:
        protected = ("--home", self.home, "--passphrase-file", self.passphrase)
        return _fedspk("device", command, *protected, *arguments, expect=expect)

    def ask(self, method: str, url: str, body: bytes | None = None) -> tuple[int, Any]:
        return asked(self.home / "fedspk.sock", method, url, body, seconds=30.0)


@dataclass
class _Caller:
    """A program on the device's machine that verifies its user again and again."""

    scores: dict[str, set[float]] = field(default_factory=dict)
    failures: list[object] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def call(self, device: _Device) -> None:
        sound = device.test.read_bytes()
        started = time.perf_counter()
        try:
            status, found = device.ask(
                "POST", f"/verify?user={device.name}&false_accept=0.1", sound
            )
        except OSError as error:
            self.failures.append(error)
            return
        self.seconds.append(time.perf_counter() - started)
        if status == 200 and found["accepted"]:
            self.scores.setdefault(found["model"], set()).add(found["score"])
        else:
            self.failures.append((status, found))


def _trained(out: Path, *more: object) -> Path:
    _fedspk("simulate", *_TRAINING, "--out", out, *more)
    return out / "fold-0" / "models" / "federated.safetensors"


def _publish(versions: Path, model: Path) -> None:
    manifest = model.with_suffix(".manifest.json")
    _fedspk(
        *("server", "publish", versions, "--model", model, "--manifest", manifest),
        *("--channel", "stable"),
    )


def _device(folder: Path, name: str, address: str, root: Path, versions: Path) -> _Device:
    corpus = open_corpus(_VOICES)
    recordings = []
    for number, utterance in enumerate(corpus.speakers[_USERS[name]]):
        recordings.append(folder / f"{name}-{number}.wav")
        soundfile.write(
            recordings[-1], corpus.source.read(utterance), SAMPLE_RATE, subtype="PCM_16"
        )
    token, passphrase = folder / f"{name}.token", folder / f"{name}.passphrase"
    _fedspk("server", "register-device", versions, name, "--out", token)
    passphrase.write_text(f"the vault of the {name}\n")
    passphrase.chmod(0o600)
    device = _Device(name, folder / name, passphrase, recordings[:_ENROLMENT], recordings[_TESTED])
    device.run("init", "--server", address, "--root", root, "--token-file", token)
    device.run("enroll", "--user", name, *device.recordings)
    return device


def _knows_its_user(device: _Device, devices: dict[str, _Device]) -> None:
    user = ("--user", device.name, "--false-accept", "0.1")
    device.run("verify", *user, device.test)
    for other in devices.values():
        if other is not device:
            device.run("verify", *user, other.test, expect=1)


def _fleet(versions: Path) -> dict[int, int]:
    """Return how many devices report that they serve with which version."""
    found: dict[int, int] = {}
    for device in json.loads(_fedspk("server", "devices", versions, "--json")):
        report = device["report"]
        if report and report["state"] == "serving":
            found[report["version"]] = found.get(report["version"], 0) + 1
    return found


def _status(device: _Device) -> Any:
    return json.loads(device.run("status", "--json"))


def _model(device: _Device) -> str:
    return str(_status(device)["model"])


@contextmanager
def _server(versions: Path) -> Iterator[str]:
    with _process("server", "run", versions, "--port", "0") as process:
        assert process.stdout is not None
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address, "the server says no address"
        yield address[0]


@contextmanager
def _running(device: _Device) -> Iterator[None]:
    protected = ("--home", device.home, "--passphrase-file", device.passphrase)
    with _process("device", "run", *protected, "--poll", "2"):
        _wait(f"{device.name} serves", lambda: _answers(device))
        yield


def _answers(device: _Device) -> bool:
    with suppress(OSError):
        return device.ask("GET", "/healthz")[0] == 200
    return False


@contextmanager
def _calling(device: _Device) -> Iterator[_Caller]:
    caller, stop = _Caller(), threading.Event()

    def run() -> None:
        while not stop.wait(0.1):
            caller.call(device)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield caller
    finally:
        stop.set()
        thread.join()


@contextmanager
def _process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a command until the block ends; it must then stop when it is asked to."""
    command = [sys.executable, "-m", "fedspk", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert code == 0, arguments


def _fedspk(*arguments: object, expect: int = 0) -> str:
    command = [sys.executable, "-m", "fedspk", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    assert done.returncode == expect, (arguments, done.stdout, done.stderr)
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def _wait(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"in {_PATIENCE_S:g} s it never came about that {what}"
        time.sleep(0.5)


def _told(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    median, p99 = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
    return f"{len(ordered)} verifications, median {1e3 * median:.0f} ms, p99 {1e3 * p99:.0f} ms"
