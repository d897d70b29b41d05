"""A device's whole life beside a real main server: it follows, answers, reports, keeps secrets."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import soundfile
from toy_device import voice
from unix_client import asked
from version_repository import evaluated, make_model

from clients.recogniser import Recogniser
from clients.vault import Vault, to_pcm
from fedspk.audio import SAMPLE_RATE, save_audio
from fedspk.cli import run

ROOT = Path(__file__).parents[2]
PASSPHRASE = "clockwork-marmalade-27"
USER = "Wilhelmina Quux"
PATIENCE_S = 240.0

pytestmark = pytest.mark.slow


@dataclass
class Onlooker:
    """Somebody who may see processes: all command lines and environments of this test's."""

    seen: set[bytes] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        while not self.stop.wait(0.02):
            for process in _descendants(os.getpid()):
                for name in ("cmdline", "environ"):
                    with suppress(OSError):
                        self.seen.add((Path("/proc") / str(process) / name).read_bytes())


def _descendants(process: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):
        for path in Path(f"/proc/{process}/task").glob("*/children"):
            children += [int(child) for child in path.read_text().split()]
    return children + [each for child in children for each in _descendants(child)]


@pytest.fixture
def onlooker() -> Iterator[Onlooker]:
    found = Onlooker()
    thread = threading.Thread(target=found.look)
    thread.start()
    yield found
    found.stop.set()
    thread.join()


@contextmanager
def process(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `fedspk` until the block ends; it must then end cleanly when told."""
    temporary = log.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "fedspk", *arguments]
    with log.open("ab") as file:
        running = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            yield running
        finally:
            running.terminate()
            code = running.wait(60)
    assert code == 0, log.read_text()


def until(happens: Callable[[], Any], running: subprocess.Popen[bytes], log: Path) -> Any:
    """Wait for something that a running process brings about, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            found = happens()
            if found:
                return found
        assert running.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def command(*arguments: object) -> None:
    assert run([str(each) for each in arguments]) == 0


def verified(path: Path, body: bytes) -> tuple[int, Any]:
    url = "/verify?user=Wilhelmina+Quux&threshold=-1"
    return asked(path, "POST", url, body, seconds=60.0)


@dataclass
class Asking:
    """A program that asks the device all the time."""

    path: Path
    body: bytes
    stop: threading.Event = field(default_factory=threading.Event)
    found: list[tuple[int, str]] = field(default_factory=list)

    def ask(self) -> None:
        while not self.stop.wait(0.1):
            try:
                status, answer = verified(self.path, self.body)
                self.found.append((status, answer.get("model", answer)))
            except OSError as error:
                self.found.append((0, str(error)))


def publish(folder: Path, given: Path, seed: int) -> str:
    """Publish a tiny model for stable and return its hash."""
    content_hash = make_model(given / f"{seed}.safetensors", seed)
    draft = evaluated(5.0) | {"thresholds": [{"false_accept_rate": 0.01, "threshold": 0.5}]}
    (given / f"{seed}.json").write_text(json.dumps(draft))
    files = ["--model", given / f"{seed}.safetensors", "--manifest", given / f"{seed}.json"]
    command("server", "publish", folder, *files, "--channel", "stable")
    return content_hash


def private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def secrets_of(home: Path, given: Path) -> dict[str, bytes]:
    """Return everything of device and operators that must not be seen."""
    vault = Vault.open(home, PASSPHRASE.encode)
    user = vault.user(USER)
    vector = vault.profile(user, Recogniser(vault).versions.current.model_hash).profile.vector
    pcm = to_pcm(voice(0, 0))
    seed = vault.identity()._key.private_bytes_raw()
    found = {
        "passphrase": PASSPHRASE.encode(),
        "name": USER.encode(),
        "first name": b"Wilhelmina",
        "sound": pcm[30_000:30_064],
        "sound as float": voice(0, 0)[15_000:15_016].tobytes(),
        "embedding": vector[:8].tobytes(),
        "embedding in words": repr(float(vector[0])).encode(),
    }
    for name, secret in (("vault key", vault.vault_key.key), ("user's key", user.key)):
        found |= {name: secret, f"{name} in hex": secret.hex().encode()}
    found |= {"identity": seed, "identity in hex": seed.hex().encode()}
    for path in given.glob("*.token"):
        found[path.name] = path.read_bytes().strip()
    return found


def test_a_device_follows_without_a_command_and_keeps_its_secrets(
    tmp_path: Path, onlooker: Onlooker, capfd: pytest.CaptureFixture[str]
) -> None:
    given, seen = tmp_path / "given", tmp_path / "seen"
    given.mkdir()
    seen.mkdir()
    folder, home, path = seen / "versions", seen / "device", tmp_path / "s"
    server_log, device_log = seen / "server.log", seen / "device.log"
    command("server", "init", folder)
    first = publish(folder, given, 1)
    command("server", "add-operator", folder, "ann", "--role", "viewer", "--out", given / "a.token")
    command("server", "register-device", folder, "kitchen", "--out", given / "device.token")
    where = ["--home", home, "--passphrase-file", private(given / "passphrase", PASSPHRASE)]
    files = [given / f"{number}.wav" for number in range(3)]
    for number, file in enumerate(files):
        save_audio(file, voice(0, number))
    body = io.BytesIO()
    soundfile.write(body, voice(0, 7), SAMPLE_RATE, format="WAV")

    with process(server_log, "server", "run", str(folder), "--port", "0") as server:
        pattern = re.compile(r"served at (http://\S+)")
        address = until(lambda: pattern.search(server_log.read_text()), server, server_log)[1]
        root = folder / "public" / "metadata" / "1.root.json"
        following = ["--server", address, "--root", root, "--token-file", given / "device.token"]
        command("device", "init", *following, *where)
        command("device", "enroll", *where, "--user", USER, *files)
        command("device", "verify", *where, "--user", USER, "--threshold", "-1", files[0])
        options = ["--poll", "1", "--socket", path]
        arguments = [str(each) for each in ("device", "run", *where, *options)]
        with process(device_log, *arguments) as device:
            until(lambda: verified(path, body.getvalue())[0] == 200, device, device_log)
            asking = Asking(path, body.getvalue())
            thread = threading.Thread(target=asking.ask)
            thread.start()
            try:
                second = publish(folder, given, 2)
                until(lambda: asking.found[-1][1] == second, device, device_log)
                until(lambda: reported(capfd, folder) == (2, "serving"), device, device_log)
                command("server", "rollback", folder, "--to", "1")
                until(lambda: asking.found[-1][1] == first, device, device_log)
                until(lambda: reported(capfd, folder) == (3, "serving"), device, device_log)
            finally:
                asking.stop.set()
                thread.join()
        assert {status for status, _ in asking.found} == {200}
        assert {model for _, model in asking.found} == {first, second}
        hidden = secrets_of(home, given)
        command("device", "forget", *where, "--user", USER)

    onlooker.stop.set()
    said = capfd.readouterr()
    shown = {"command lines and environments": b"\n".join(onlooker.seen)}
    shown |= {str(file): file.read_bytes() for file in seen.rglob("*") if file.is_file()}
    # what this test typed and was told itself: the name is the user's own, on the user's terminal
    shown["terminal"] = (said.out + said.err).replace(USER, "").encode()
    assert b"clients.update_process" in shown["command lines and environments"]
    arguments = {"name": b"--user\0Wilhelmina Quux"}
    found = {
        (secret, place)
        for secret, value in hidden.items()
        for place, content in shown.items()
        if value in content.replace(arguments["name"], b"")
    }
    assert not found
    assert not list((seen / "temporary").iterdir())


def reported(capfd: pytest.CaptureFixture[str], folder: Path) -> tuple[int, str] | None:
    """Return version and state that the one device reported."""
    capfd.readouterr()
    command("server", "devices", folder, "--json")
    record = json.loads(capfd.readouterr().out)[0]
    report = record["report"]
    return report and (report["version"], report["state"])
