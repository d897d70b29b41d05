"""The running device: what it answers over its socket, to whom, and while the model changes."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from toy_device import THRESHOLDS, new_device, open_device, toy_model, voice
from unix_client import asked

from clients import socket_server
from clients.recogniser import Recogniser
from clients.service import run_service
from clients.socket_server import MOST_BYTES
from clients.vault import Vault
from fedspk.audio import SAMPLE_RATE
from fedspk.errors import FedspkError
from fedspk.files import DiskFullError

pytestmark = pytest.mark.usefixtures("quick_passphrases")


@contextmanager
def running(vault: Vault, path: Path) -> Iterator[Path]:
    """Serve at a socket in a thread until the block ends."""
    stop, faults = threading.Event(), []

    def run() -> None:
        try:
            run_service(vault, path, 3600, stop, random.Random(1))
        except FedspkError as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not faults and not answers(path):
            thread.join(0.01)
        if not faults:
            yield path
    finally:
        stop.set()
        thread.join()
    if faults:  # perhaps only now: another service at the socket answers, too
        raise faults[0]


def answers(path: Path) -> bool:
    try:
        return asked(path, "GET", "/healthz")[0] == 200
    except OSError:
        return False


@pytest.fixture
def service(device: Recogniser, tmp_path: Path) -> Iterator[Path]:
    with running(device._vault, tmp_path / "s") as path:
        yield path


def sound(speaker: int, number: int, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, voice(speaker, number), SAMPLE_RATE, format=kind, subtype="PCM_16")
    return file.getvalue()


def sent(path: Path, request: bytes) -> bytes:
    """Send bytes and return all that comes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20.0)
        connection.connect(str(path))
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_the_user_is_accepted_and_an_impostor_refused(service: Path, kind: str) -> None:
    status, found = asked(service, "POST", "/verify?user=anna", sound(0, 7, kind))
    assert status == 200
    assert found.pop("score") > 0.8
    assert found == {
        "user": "anna",
        "accepted": True,
        "threshold": 0.8,
        "false_accept": 0.01,
        "model": toy_model().model_hash,
        "warnings": [],
    }
    status, found = asked(service, "POST", "/verify?user=anna", sound(1, 7, kind))
    assert (status, found["accepted"]) == (200, False)


def test_the_asking_program_chooses_the_threshold(service: Path) -> None:
    url = "/verify?user=anna&false_accept="
    assert asked(service, "POST", f"{url}0.001", sound(0, 7))[1]["threshold"] == 0.9
    found = asked(service, "POST", "/verify?user=anna&threshold=1", sound(0, 7))[1]
    assert (found["accepted"], found["false_accept"]) == (False, None)


def test_the_speaker_is_identified(service: Path) -> None:
    found = asked(service, "POST", "/identify", sound(1, 7))[1]
    assert found["speaker"] == "bert"
    assert set(found["scores"]) == {"anna", "bert"}
    assert asked(service, "POST", "/identify", sound(3, 7))[1]["speaker"] is None


def test_a_name_may_hold_anything(service: Path, device: Recogniser) -> None:
    device.enrol("René & Cie?", [voice(2, number) for number in range(3)])
    url = "/verify?user=Ren%C3%A9+%26+Cie%3F"
    assert asked(service, "POST", url, sound(2, 7))[1]["accepted"]


def test_status_tells_models_and_users(service: Path, device: Recogniser) -> None:
    status, found = asked(service, "GET", "/status")
    assert status == 200
    assert found["model"] == toy_model().model_hash
    assert [user["name"] for user in found["users"]] == ["anna", "bert"]
    assert (found["server"], found["registered"], found["trouble"]) == (None, False, None)


@pytest.mark.parametrize(
    ("method", "url", "status", "said"),
    [
        ("GET", "/", 404, "there are POST /verify, POST /identify, GET /status, GET /healthz"),
        ("GET", "/verify?user=anna", 404, "no such request"),
        ("POST", "/verify", 400, "?user=NAME"),
        ("POST", "/verify?user=eve", 404, "'eve' is not enrolled"),
        ("POST", "/verify?user=anna&user=bert", 400, "stands twice"),
        ("POST", "/verify?user=anna&home=x", 400, "'home' is no field"),
        ("POST", "/verify?user=anna&threshold=2", 400, "from -1 to 1"),
        ("POST", "/verify?user=anna&threshold=nan", 400, "from -1 to 1"),
        ("POST", "/verify?user=anna&false_accept=x", 400, "from 0 to 1"),
        ("POST", "/verify?user=anna&false_accept=0.01&threshold=0", 400, "either"),
        ("POST", "/verify?user=anna&false_accept=0.0001", 409, "no threshold"),
        ("GET", "/status?user=anna", 400, "there is none"),
        ("DELETE", "/verify", 501, "Unsupported method"),
    ],
)
def test_a_wrong_request_gets_one_sentence(
    service: Path, method: str, url: str, status: int, said: str
) -> None:
    body = sound(0, 7) if method == "POST" else None
    found = asked(service, method, url, body)
    assert found[0] == status
    assert said in found[1]["error"]
    assert list(found[1]) == ["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not a sound file"),
        (b"no sound", "not a sound file"),
        (sound(0, 7, "FLAC")[:3000], "damaged"),
        (sound(0, 7)[:44], "no samples"),
        (sound(0, 7)[:8044], "too short"),
    ],
)
def test_what_is_no_recording_is_refused(service: Path, body: bytes, said: str) -> None:
    status, found = asked(service, "POST", "/verify?user=anna", body)
    assert status == 422
    assert said in found["error"]


def test_silence_is_refused_and_poor_sound_warned_of(service: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(48_000), SAMPLE_RATE, format="WAV")
    assert "silent" in asked(service, "POST", "/identify", file.getvalue())[1]["error"]
    file = io.BytesIO()
    loud = np.clip(30 * voice(0, 1), -1, 1)
    soundfile.write(file, loud, SAMPLE_RATE, format="WAV")
    status, found = asked(service, "POST", "/verify?user=anna", file.getvalue())
    assert status == 200
    assert found["warnings"][0].startswith("clipped")


def test_a_small_file_of_many_minutes_is_not_decoded(service: Path) -> None:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as writer:
        for _ in range(20):
            writer.write(np.zeros(60 * SAMPLE_RATE, np.float32))
    assert len(file.getvalue()) < 1_000_000
    status, found = asked(service, "POST", "/verify?user=anna", file.getvalue())
    assert status == 422
    assert "longer than 60 s" in found["error"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /verify?user=anna HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        (b"POST /verify HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 411),
        (b"POST /verify HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
        (b"POST /verify HTTP/1.1\r\nContent-Length: " + 5000 * b"9" + b"\r\n\r\n", 411),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + 70_000 * b"x" + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_a_body_is_bounded_and_its_length_stated(
    service: Path, request_bytes: bytes, status: int
) -> None:
    head, _, body = sent(service, request_bytes).partition(b"\r\n\r\n")
    if head.startswith(b"{"):  # HTTP/0.9 has no head
        head, body = b"HTTP/0.9 400", head
    assert head.split()[1] == str(status).encode()
    assert json.loads(body)["error"]


def test_a_body_that_is_too_long_is_refused_in_words(service: Path) -> None:
    status, found = asked(service, "POST", "/identify", bytes(MOST_BYTES + 1))
    assert status == 413
    assert "longer than 10000000 bytes" in found["error"]


def test_a_program_that_goes_silent_is_left(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_server._Handler, "timeout", 0.1)
    assert sent(service, b"POST /verify?user=anna HTTP/1.1\r\nContent-Length: 9\r\n\r\nx") == b""
    assert answers(service)


def test_many_programs_ask_at_once_and_idle_ones_do_not_stand_in_the_way(service: Path) -> None:
    idle = [socket.socket(socket.AF_UNIX) for _ in range(10)]
    for each in idle:
        each.connect(str(service))
    body = sound(0, 7)
    with ThreadPoolExecutor(40) as pool:
        found = list(
            pool.map(lambda _: asked(service, "POST", "/verify?user=anna", body), range(120))
        )
    for each in idle:
        each.close()
    assert [status for status, _ in found] == 120 * [200]
    assert len({answer["score"] for _, answer in found}) == 1


def test_the_socket_is_its_owners_alone_and_goes_with_the_service(
    device: Recogniser, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with running(device._vault, path):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


def test_there_is_one_service_at_a_socket(
    service: Path, device: Recogniser, tmp_path: Path
) -> None:
    with (
        pytest.raises(FedspkError, match="serves there already"),
        running(device._vault, service),
    ):
        pass
    assert answers(service)


def test_what_a_killed_service_left_is_replaced(device: Recogniser, tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()
    with running(device._vault, tmp_path / "s") as path:
        assert answers(path)


def test_a_socket_that_cannot_be_is_refused(device: Recogniser, tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / ("x" * 120), "too long for a socket"),
        (tmp_path / "none" / "s", "cannot be made"),
    ):
        with pytest.raises(FedspkError, match=said):
            run_service(device._vault, path, 3600, threading.Event(), random.Random(1))


@pytest.mark.parametrize("fault", [KeyError("anna"), OSError(errno.EIO, "Input/output error")])
def test_a_fault_inside_is_an_answer_too(
    service: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(Recogniser, "verify", fail)
    status, found = asked(service, "POST", "/verify?user=anna", sound(0, 7))
    said = f"the device has a fault ({type(fault).__name__}); see its log."
    assert (status, found["error"]) == (500, said)
    assert "a fault" in caplog.text


def read_only(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Let no file under a folder be opened for writing."""
    open_file = os.open

    def refuse(name: Any, flags: int, *mode: int, **options: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY) and Path(name).is_relative_to(path):
            raise OSError(errno.EROFS, "Read-only file system", name)
        return open_file(name, flags, *mode, **options)

    patch.setattr(os, "open", refuse)


def full(_: Path, patch: pytest.MonkeyPatch) -> None:
    """Let no box be written."""

    def refuse(*_: object) -> None:
        raise DiskFullError("the disk is full.")

    patch.setattr("clients.vault.write_bytes", refuse)


@pytest.mark.parametrize("disk", [read_only, full])
def test_a_profile_that_cannot_be_written_anew_serves_all_the_same(
    service: Path,
    device: Recogniser,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    disk: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    home = device._vault.home
    for path in (home / "users" / device._vault.user("anna").id).glob("*.profile"):
        path.write_bytes(b"x" * 100)
    disk(home, monkeypatch)
    status, found = asked(service, "POST", "/verify?user=anna", sound(0, 7))
    assert (status, found["accepted"]) == (200, True)
    status, found = asked(service, "POST", "/identify", sound(1, 7))
    assert (status, found["speaker"]) == (200, "bert")
    assert "could not be kept" in caplog.text
    with pytest.raises(FedspkError):
        device.enrol("carl", [voice(2, 0)])


def test_an_altered_box_is_told(service: Path, device: Recogniser) -> None:
    folder = device._vault.home / "users" / device._vault.user("anna").id
    (folder / "card.box").write_bytes(b"x" * 200)
    status, found = asked(service, "POST", "/verify?user=anna", sound(0, 7))
    assert status == 500
    assert "was altered" in found["error"]
    assert asked(service, "POST", "/verify?user=bert", sound(1, 7))[0] == 200
    status, found = asked(service, "GET", "/status")
    assert found["damaged"] == [folder.name]


def test_no_request_fails_while_the_model_changes_back_and_forth(
    service: Path, device: Recogniser
) -> None:
    stop, body = threading.Event(), sound(0, 7)
    wrong = sound(1, 7)

    def ask() -> list[tuple[int, Any]]:
        found = []
        while not stop.is_set():
            found.append(asked(service, "POST", "/verify?user=anna", body))
            found.append(asked(service, "POST", "/verify?user=bert", body))
            assert not asked(service, "POST", "/verify?user=anna", wrong)[1]["accepted"]
        return found

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for seed in (2, 3, 4, 5):
                open_device(device._vault.home).use_model(toy_model(seed), THRESHOLDS)
                open_device(device._vault.home).use_previous()
        finally:
            stop.set()
        found = [answer for each in asking for answer in each.result()]
    assert {status for status, _ in found} == {200}
    assert all(answer["accepted"] == (answer["user"] == "anna") for _, answer in found)
    assert len({answer["model"] for _, answer in found}) > 1


def test_no_request_fails_while_others_are_enrolled_and_forgotten(
    service: Path, device: Recogniser
) -> None:
    stop, body = threading.Event(), sound(0, 7)

    def ask() -> set[int]:
        found = set()
        while not stop.is_set():
            found.add(asked(service, "POST", "/verify?user=anna", body)[0])
        return found

    vault = open_device(device._vault.home)._vault
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for number in range(10):
                device.enrol("carl", [voice(2, number)])
                with vault.writing():
                    vault.forget(vault.user("carl"))
        finally:
            stop.set()
        assert set.union(*(each.result() for each in asking)) == {200}


def test_a_file_that_is_no_socket_is_left_as_it_is(device: Recogniser, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text("{}")
    with (
        pytest.raises(FedspkError, match="is no socket"),
        socket_server.serving(tmp_path / "facts.json", {}),
    ):
        pass
    assert (tmp_path / "facts.json").read_text() == "{}"


def test_slow_programs_keep_neither_others_nor_the_end_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_server, "_LONGEST_S", 1.0)
    path, stop = tmp_path / "s", threading.Event()

    def trickle(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(b"POST /healthz HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n")
            while not stop.wait(0.1):
                connection.sendall(b"x")

    with ThreadPoolExecutor(socket_server._CONNECTIONS) as pool:
        with socket_server.serving(path, {("GET", "/healthz"): lambda _: {}}):
            for _ in range(socket_server._CONNECTIONS):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(path))
                pool.submit(trickle, connection)
            assert asked(path, "GET", "/healthz") == (200, {})
        stop.set()


def test_the_end_does_not_wait_for_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_server, "_CONNECTIONS", 1)
    monkeypatch.setattr(socket_server, "_GRACE_S", 0.1)
    monkeypatch.setattr(socket_server, "_LONGEST_S", 600.0)
    path, begun = tmp_path / "s", time.monotonic()
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    with socket_server.serving(path, {}):
        for each in waiting:
            each.connect(str(path))
            time.sleep(0.3)
    assert time.monotonic() - begun < 5.0
    for each in waiting:
        each.close()


def test_an_address_that_is_none_is_a_wrong_request(service: Path) -> None:
    said = sent(service, b"GET http://[ HTTP/1.1\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.endswith(b'{"error": "the address is none."}')


def test_systemd_hears_that_the_service_is_ready_lives_and_ends(
    device: Recogniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        with running(device._vault, tmp_path / "s"):
            assert systemd.recv(100) == b"READY=1"
            assert systemd.recv(100) == b"WATCHDOG=1"
        said = b""
        while said != b"STOPPING=1":
            said = systemd.recv(100)


def test_a_service_that_does_not_answer_is_not_called_alive(
    device: Recogniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.setattr("clients.service._answers", lambda _: False)
        with running(device._vault, tmp_path / "s"):
            assert systemd.recv(100) == b"READY=1"
            systemd.settimeout(0.2)
            with pytest.raises(TimeoutError):
                systemd.recv(100)


def test_the_command_ends_cleanly_when_told(
    tmp_path: Path, where: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the command derives keys as it always does
    device = new_device(tmp_path / "home", "anna")
    home = device._vault.home
    path = home / "fedspk.sock"
    command = [sys.executable, "-m", "fedspk", "device", "run", *where]
    root = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=os.environ | root, stderr=subprocess.PIPE) as process:
        while not answers(path):
            assert process.poll() is None
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        status, found = asked(path, "POST", "/verify?user=anna", sound(0, 7))
        assert (status, found["accepted"]) == (200, True)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 0
    assert said == b""
    assert not path.exists()


def test_the_unit_is_one_that_systemd_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from shutil import which

    from fedspk.cli import run

    assert run(["device", "unit"]) == 0
    text = capsys.readouterr().out
    program = Path(sys.executable).with_name("fedspk")
    assert f"ExecStart={program} device run --home /var/lib/fedspk\n" in text
    if which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "fedspk-device.service"
    unit.write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, check=False
    )
    assert b"fedspk-device.service" not in checked.stderr, checked.stderr.decode()
