"""`fedspk server run` as a process, and the commands for operators and devices."""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import typed_commands
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from main_server import SigningDevice, bearer

from fedspk.api import API
from fedspk.errors import FedspkError
from fedspk.secagg.keys import DeviceRegister
from fedspk.signing import read_secret
from server.registry import Registry
from server.repository import Repository


def does(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return typed_commands.does(capsys, "server", *arguments)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return typed_commands.fails(capsys, "server", *arguments)


@contextmanager
def server_process(
    folder: Path, *options: object, **how: Any
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server on a free port and yield its address and the process."""
    command = [sys.executable, "-m", "fedspk", "server", "run", folder, "--port", 0, *options]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        assert found, line
        yield found[0], process
    finally:
        process.kill()
        process.wait()


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        "run",
        "add-operator",
        "remove-operator",
        "register-device",
        "revoke-device",
        "devices",
    ):
        printed = " ".join(does(capsys, command, "--help").split())
        assert f"Example: fedspk server {command}" in printed


def test_operators_come_and_go(
    capsys: pytest.CaptureFixture[str], repository: Repository, tmp_path: Path
) -> None:
    folder, out = repository.folder, tmp_path / "ann.token"
    printed = does(capsys, "add-operator", folder, "ann", "--role", "operator", "--out", out)
    token = out.read_text().strip()
    assert token not in printed
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    registry = Registry.of(folder)
    operator = registry.operator(token)
    assert operator is not None
    assert operator.role == "operator"
    assert "there already" in fails(capsys, "add-operator", folder, "ann", "--role", "viewer")
    existing = ("add-operator", folder, "bob", "--role", "viewer", "--out", out)
    assert "name a new file" in fails(capsys, *existing)
    shown = does(capsys, "add-operator", folder, "bob", "--role", "viewer").strip()
    assert registry.operator(shown) is not None
    does(capsys, "remove-operator", folder, "ann")
    assert registry.operator(token) is None
    assert "no operator" in fails(capsys, "remove-operator", folder, "ann")
    registry.close()


def test_devices_come_and_go(
    capsys: pytest.CaptureFixture[str], repository: Repository, tmp_path: Path
) -> None:
    folder = repository.folder
    token = does(capsys, "register-device", folder, "kitchen", "--days", 1).strip()
    registry, device = Registry.of(folder), SigningDevice(1)
    assert "invited" in does(capsys, "devices", folder)
    registry.register(device.registration(token), 1)
    registry.close()
    listed = json.loads(
        does(capsys, "devices", folder, "--json", "--register", tmp_path / "register.json")
    )
    assert [each["device"] for each in listed] == [device.id]
    assert set(DeviceRegister.load(tmp_path / "register.json").keys) == {device.id}
    assert "registered" in does(capsys, "devices", folder)
    assert "registered already" in fails(capsys, "register-device", folder, "kitchen")
    does(capsys, "revoke-device", folder, "kitchen")
    assert "revoked already" in fails(capsys, "revoke-device", folder, device.id)
    assert "no device" in fails(capsys, "revoke-device", folder, "cellar")
    actions = [each["action"] for each in repository.audit.entries()]
    assert actions[-3:] == ["invite", "register", "revoke"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--host", "0.0.0.0"], "would send tokens in the clear"),
        (["--tls-cert", "x"], "go together"),
        (["--tls-cert", "x", "--tls-key", "y"], "no certificate and its key"),
        (["--host", "no.such.host.invalid", "--behind-proxy"], "cannot be used"),
    ],
)
def test_a_wrong_address_is_refused(
    capsys: pytest.CaptureFixture[str], repository: Repository, options: list[str], complaint: str
) -> None:
    assert complaint in fails(capsys, "run", repository.folder, *options)


def test_a_passphrase_may_be_a_credential_of_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = tmp_path / "fedspk-keys"
    credential.write_bytes(b"secret")
    credential.chmod(0o440)  # the mask of an ACL
    with pytest.raises(FedspkError, match="others may read"):
        read_secret(credential)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_secret(credential) == b"secret"
    credential.chmod(0o444)
    with pytest.raises(FedspkError, match="others may read"):
        read_secret(credential)


def test_a_server_renews_serves_and_stops_at_sigterm(repository: Repository) -> None:
    before = repository.read().timestamp.signed.version
    registry = Registry.of(repository.folder)
    token = registry.add_operator("ann", "viewer")
    registry.close()
    with server_process(repository.folder) as (address, process):
        assert httpx.get(f"{address}/healthz").status_code == 200
        found = httpx.get(f"{address}{API}/versions?secret=1", headers=bearer(token))
        assert found.status_code == 200
        httpx.post(f"{address}{API}/rollbacks?secret=1", json={"to": 1}, headers=bearer(token))
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert repository.read().timestamp.signed.version == before + 1
    assert "signed again role=timestamp" in log
    assert "status=403 who=ann" in log
    assert log.splitlines()[-1].endswith("stopped")
    assert "secret" not in log
    assert token not in log


def test_a_low_limit_of_open_files_keeps_no_device_out(repository: Repository) -> None:
    def lower() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))

    with server_process(repository.folder, preexec_fn=lower) as (address, _), ExitStack() as stack:
        place = "127.0.0.1", int(address.rpartition(":")[2])
        opened = [
            stack.enter_context(socket.create_connection(place, timeout=10)) for _ in range(200)
        ]
        for each in opened:
            each.sendall(b"GET /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = {each.recv(12) for each in opened}
    assert answers == {b"HTTP/1.1 200"}


def test_behind_a_proxy_the_cookie_never_travels_in_clear(repository: Repository) -> None:
    registry = Registry.of(repository.folder)
    token = registry.add_operator("ann", "viewer")
    registry.close()
    with server_process(repository.folder, "--behind-proxy") as (address, _):
        answer = httpx.post(f"{address}/login", data={"token": token})
    assert answer.status_code == 303
    assert "; Secure" in answer.headers["set-cookie"]


def test_a_server_speaks_tls(repository: Repository, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with server_process(
        repository.folder, "--host", "0.0.0.0", "--tls-cert", certificate, "--tls-key", key
    ) as (address, _):
        trusting = ssl.create_default_context(cafile=certificate)
        port = address.rpartition(":")[2]
        answer = httpx.get(f"https://localhost:{port}/healthz", verify=trusting)
        assert answer.status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://localhost:{port}/healthz")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate of localhost, signed by itself, and its key."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, None)
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files
