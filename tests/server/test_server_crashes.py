"""The whole server killed while it publishes, or its disk full: the old version or the new one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from mortal_server import mortal_server
from version_repository import Device, evaluated

from fedspk.api import API, Registration, Report, SignedRequest
from fedspk.secagg.keys import Identity
from server.registry import Registry
from server.repository import Repository

HASH = "a" * 64


@dataclass
class Fleet:
    """A repository whose register knows an operator and a device."""

    folder: Path
    token: str
    device: Identity

    def client(self, address: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=f"{address}{API}", headers=headers, timeout=30)

    def report(self, address: str, version: int, content_hash: str = HASH) -> int:
        """Send a signed report and return the status."""
        report = Report(version=version, content_hash=content_hash, state="serving", client="0.1.0")
        path = f"{API}/devices/{self.device.device}/report"
        body, now = report.to_json(), time.time_ns() // 1_000_000
        signed = SignedRequest.sign(self.device, "PUT", path, body, now)
        headers = {"Authorization": signed.header(), "Content-Type": "application/json"}
        return httpx.put(address + path, content=body, headers=headers).status_code

    def reported(self) -> Report | None:
        """Return what the register holds of the device."""
        registry = Registry.of(self.folder)
        try:
            return registry.device(self.device.device).report
        finally:
            registry.close()


@pytest.fixture
def fleet(repository: Repository) -> Fleet:
    registry = Registry.of(repository.folder)
    token = registry.add_operator("ada", "operator")
    device = Identity.generate("1" * 32)
    registration = Registration(
        device=device.device, public_key=device.public.hex(), token=registry.invite("kitchen").token
    )
    registry.register(registration, 0)
    registry.close()
    return Fleet(repository.folder, token, device)


def publish(client: httpx.Client, model: Path, version: int) -> httpx.Response:
    """Upload a model and publish it in stable."""
    content = model.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    uploaded = client.put(f"/uploads/{digest}", content=content)
    if uploaded.status_code >= 400:
        return uploaded
    wanted = {"model": digest, "manifest": {**evaluated(5), "version": version}}
    while True:
        answer = client.post("/versions", json={**wanted, "channel": "stable"})
        if "being changed by another process" not in answer.text:  # it still renews
            return answer


def was_killed(fleet: Fleet, number: int, model: Path) -> bool:
    """Publish version 2 in a server that its n-th write kills; say whether there was one."""
    with mortal_server(fleet.folder, number) as (address, process), fleet.client(address) as client:
        try:
            answer = publish(client, model, 2)
        except httpx.TransportError:
            process.join()
            assert process.exitcode == -signal.SIGKILL
            return True
    assert answer.status_code == 201, answer.text
    return False


def check_restarted(fleet: Fleet, root: bytes, faithful: Path, model: Path) -> int:
    """Start the server again; return the version on which all agree."""
    with mortal_server(fleet.folder) as (address, _), fleet.client(address) as client:
        devices = [
            Device(faithful, address, root),
            Device(faithful.with_name(f"{faithful.name}-new"), address, root),
        ]
        versions = {each.update().version for each in devices}
        assert len(versions) == 1
        (version,) = versions
        listed = client.get("/channels").json()["channels"]
        assert [(each["name"], each["version"]) for each in listed] == [("stable", version)]
        assert fleet.report(address, version) == 204
        assert client.get("/fleet").json()["versions"][str(version)]["serving"] == 1
        if version == 1:  # what was not done can be done again
            assert publish(client, model, 2).status_code == 201
            assert {each.update().version for each in devices} == {2}
    with sqlite3.connect(fleet.folder / "registry.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Repository(fleet.folder).changing():
        assert not list((fleet.folder / "public").rglob("*.partial"))
    return version


@pytest.mark.slow
def test_a_server_killed_while_it_publishes_leaves_the_old_version_or_the_new_one(
    fleet: Fleet, models: list[Path], tmp_path: Path
) -> None:
    root = (fleet.folder / "public/metadata/1.root.json").read_bytes()
    original = tmp_path / "original"
    shutil.copytree(fleet.folder, original)
    with mortal_server(fleet.folder) as (address, _):
        Device(tmp_path / "faithful", address, root).update()
    found = []
    died = True
    while died:
        shutil.rmtree(fleet.folder)
        shutil.copytree(original, fleet.folder)
        died = was_killed(fleet, len(found) + 1, models[1])
        faithful = tmp_path / f"faithful-{len(found)}"
        shutil.copytree(tmp_path / "faithful", faithful, symlinks=True)
        found.append(check_restarted(fleet, root, faithful, models[1]))
    assert found[0] == 1
    assert found[-1] == 2
    assert found == sorted(found)
    assert len(found) > 15, "nearly nothing was written: nothing was tested"


def test_what_the_server_confirmed_survives_its_death(fleet: Fleet) -> None:
    """Killed at five instants while a device reports without a pause."""
    for delay in (0.01, 0.03, 0.05, 0.07, 0.09):
        confirmed = 0
        with mortal_server(fleet.folder) as (address, process):
            assert process.pid is not None
            assert fleet.report(address, 1, f"{confirmed:064x}") == 204
            killer = threading.Timer(delay, os.kill, (process.pid, signal.SIGKILL))
            killer.start()
            with contextlib.suppress(httpx.TransportError):
                while True:
                    assert fleet.report(address, 1, f"{confirmed + 1:064x}") == 204
                    confirmed += 1
            killer.join()
        report = fleet.reported()
        assert report is not None
        # The last report may have arrived without its confirmation.
        assert int(report.content_hash, 16) in (confirmed, confirmed + 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("left", ["nothing", "an upload", "an upload and a part of a copy"])
def test_a_full_disk_while_publishing_is_one_sentence_and_the_old_version_stays(
    fleet: Fleet, models: list[Path], small_disk: Path, tmp_path: Path, left: str
) -> None:
    shutil.copytree(fleet.folder, small_disk / "versions")
    fleet.folder = small_disk / "versions"
    size = models[1].stat().st_size
    free = {"nothing": 0, "an upload": size, "an upload and a part of a copy": size * 3 // 2}[left]
    filler = small_disk / "filler"
    root = (fleet.folder / "public/metadata/1.root.json").read_bytes()
    with mortal_server(fleet.folder) as (address, _), fleet.client(address) as client:
        device = Device(tmp_path / "device", address, root)
        taken = os.statvfs(small_disk)
        filler.write_bytes(bytes(taken.f_bavail * taken.f_frsize - free))
        answer = publish(client, models[1], 2)
        assert answer.status_code == 507, answer.text
        assert set(answer.json()) == {"error"}
        assert "disk is full; free some space" in answer.json()["error"]
        assert device.update().version == 1
        assert client.get("/versions").status_code == 200
        filler.unlink()
        assert publish(client, models[1], 2).status_code == 201
        assert device.update().version == 2
