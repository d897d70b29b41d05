"""What the main server bears: a fleet that polls and reports while some of it updates.

    python benchmarks/fleet.py [--devices 1000] [--updating 50] [--interval 10] [--seconds 30]

`fedspk server run` answers from a process of its own; this one is the devices that poll, another
one those that update. A check is what
a device sends when nothing is new, over one new connection: the next root, the timestamp, and its
signed report. An update is all that a device fetches for a new version, over one connection, the
model in two halves as after a broken download. Every answer is compared with what is published,
and at the end every device's last report with the registry.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fedspk.api import API, Registration, Report, SignedRequest
from fedspk.engine import ModelDescription, save_described
from fedspk.features import FrontEndConfig
from fedspk.model import HeadConfig, build_model
from fedspk.release import channel_path, manifest_path, model_path
from fedspk.secagg.keys import Identity
from server import operations
from server.creation import create
from server.keyring import at_hand
from server.registry import Registry
from server.repository import Repository, State

WIDTHS = (0.44, 1.0)  # of resnet1d-34: model files of 7 and 31 MB


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--updating", type=int, default=50)
    parser.add_argument("--interval", type=float, default=10, help="seconds between checks")
    parser.add_argument("--seconds", type=float, default=30, help="how long each load lasts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        repository = published(Path(scratch))
        with serving(repository.folder) as (port, process):
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the server sees to its own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            asyncio.run(measured(Load(repository, port, process), arguments))


@dataclass
class Device:
    """A device: who it is, and the last report that the server took."""

    identity: Identity
    reports: int = 0
    taken: str = ""


@dataclass
class Load:
    """The server under load, and how long its answers took, in seconds."""

    repository: Repository
    port: int
    process: int
    devices: list[Device] = field(default_factory=list)
    took: dict[str, list[float]] = field(default_factory=dict)

    async def register(self, token: str) -> None:
        """Register a device with its token."""
        identity = Identity.generate(os.urandom(16).hex())
        message = Registration(
            device=identity.device, public_key=identity.public.hex(), token=token
        )
        async with Connection.to(self.port) as connection:
            path = f"{API}/devices"
            await self.signed(connection, identity, "POST", path, message.to_json(), 201)
        self.devices.append(Device(identity))

    async def check(self, device: Device) -> None:
        """Learn that nothing is new, and report."""
        async with Connection.to(self.port) as connection:
            await self.get(connection, "/metadata/2.root.json", 404)
            timestamp = await self.get(connection, "/metadata/timestamp.json")
            assert timestamp == (self.repository.metadata / "timestamp.json").read_bytes()
            device.reports += 1
            name = device.identity.device
            content = hashlib.sha256(f"{name} {device.reports}".encode()).hexdigest()
            report = Report(version=2, content_hash=content, state="serving", client="0.1.0")
            path = f"{API}/devices/{name}/report"
            await self.signed(connection, device.identity, "PUT", path, report.to_json(), 204)
            device.taken = content

    async def get(self, connection: Connection, path: str, expected: int = 200) -> bytes:
        """Return what lies at a path."""
        status, content = await connection.request("GET", path, {})
        assert status == expected, f"{path}: {status}"
        return content

    async def signed(
        self,
        connection: Connection,
        identity: Identity,
        method: str,
        path: str,
        body: bytes,
        expected: int,
    ) -> None:
        """Send a signed message."""
        now = time.time_ns() // 1_000_000
        header = SignedRequest.sign(identity, method, path, body, now).header()
        headers = {"Authorization": header, "Content-Type": "application/json"}
        status, content = await connection.request(method, path, headers, body)
        assert status == expected, f"{path}: {status} {content!r}"

    async def timed(self, what: str, action: Awaitable[None]) -> None:
        """Take an action's time."""
        start = time.perf_counter()
        await action
        self.took.setdefault(what, []).append(time.perf_counter() - start)


class Connection:
    """One connection over HTTP/1.1, as plain as can be: the server is what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Self]:
        """Open a connection and close it after the block."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def request(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, bytes]:
        """Return status and content of the answer."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        length = int(fields.get("content-length", 0))
        return int(head[0].split()[1]), await self._reader.readexactly(length)


async def measured(load: Load, arguments: argparse.Namespace) -> None:
    """Register the devices, load the server in three ways, and print what it took."""
    print("| load | server CPU, % of a core | what | number | per s | p50, ms | p99, ms |")
    print("|---|---|---|---|---|---|---|")
    registry = Registry.of(load.repository.folder)
    tokens = [registry.invite(f"device-{n}").token for n in range(arguments.devices)]
    registry.close()

    async def register() -> None:
        actions = [load.timed("registration", load.register(each)) for each in tokens]
        await at_most(20, actions)

    async def poll() -> None:
        until = time.perf_counter() + arguments.seconds
        await asyncio.gather(
            *(polling(load, each, arguments.interval, until) for each in load.devices)
        )

    async def both() -> None:
        await asyncio.gather(poll(), updating(load, arguments.updating, arguments.seconds / 3))

    async def rush() -> None:
        await asyncio.gather(*(load.timed("check", load.check(each)) for each in load.devices))

    devices = f"{arguments.devices} devices"
    loads: dict[str, Callable[[], Awaitable[None]]] = {
        f"{devices} register, 20 at a time": register,
        f"{devices} check every {arguments.interval:g} s": poll,
        f"the same, and {arguments.updating} update at once": both,
        f"{devices} check at one instant": rush,
    }
    for name, action in loads.items():
        load.took = {}
        start, cpu = time.perf_counter(), cpu_seconds(load.process)
        await action()
        wall = time.perf_counter() - start
        share = (cpu_seconds(load.process) - cpu) / wall
        for what, took in load.took.items():
            rate = f"{what} | {len(took)} | {len(took) / wall:.0f}"
            times = f"{1e3 * quantile(took, 0.5):.0f} | {1e3 * quantile(took, 0.99):.0f}"
            print(f"| {name} | {100 * share:.0f} | {rate} | {times} |", flush=True)
    check_reports(load)


async def polling(load: Load, device: Device, interval: float, until: float) -> None:
    """Check again and again, first at a random instant, then with jitter, as devices do."""
    due = time.perf_counter() + interval * random.random()
    while due < until:
        await asyncio.sleep(due - time.perf_counter())
        await load.timed("check", load.check(device))
        due += interval * random.uniform(0.8, 1.2)


async def updating(load: Load, number: int, after: float) -> None:
    """Let so many devices update at once, from a process of their own, after some seconds."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(pool, os.getpid)  # it has started
        await asyncio.sleep(after)
        arguments = (load.repository.folder, load.port, number)
        took = await loop.run_in_executor(pool, updates, *arguments)
    load.took.update(took)


def updates(folder: Path, port: int, number: int) -> dict[str, list[float]]:
    """Let half of the devices fetch each version, all at once; return what it took, in seconds."""
    state = Repository(folder).read()
    took: dict[str, list[float]] = {}

    def run(version: int) -> None:
        start = time.perf_counter()
        length = update(state, port, version)
        name = f"update, {length / 1e6:.0f} MB"
        took.setdefault(name, []).append(time.perf_counter() - start)

    with ThreadPoolExecutor(number) as pool:
        list(pool.map(run, [1 + n % 2 for n in range(number)]))
    return took


def update(state: State, port: int, version: int) -> int:
    """Fetch a version with all that proves it; return the length of the model."""
    assert state.release is not None
    targets = state.release.signed.targets
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def get(path: str, expected: int = 200, **headers: str) -> bytes:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == expected, f"{path}: {answer.status}"
        return content

    get("/metadata/2.root.json", 404)
    get("/metadata/timestamp.json")
    for role in ("snapshot", "targets", "release"):
        get(f"/metadata/{state.roles()[role].signed.version}.{role}.json")
    for path in (channel_path("stable"), manifest_path("model", version)):
        small = targets[path]
        small.verify_length_and_hashes(get(f"/targets/{small.get_prefixed_paths()[0]}"))
    model = targets[model_path("model", version)]
    path, half = f"/targets/{model.get_prefixed_paths()[0]}", model.length // 2
    etag = {"If-Range": f'"{model.hashes["sha256"]}"'}
    content = get(path, 206, Range=f"bytes=0-{half - 1}")
    content += get(path, 206, Range=f"bytes={half}-", **etag)
    model.verify_length_and_hashes(content)
    connection.close()
    return model.length


async def at_most(number: int, actions: list[Awaitable[None]]) -> None:
    """Wait for all actions, so many at a time."""
    free = asyncio.Semaphore(number)

    async def run(action: Awaitable[None]) -> None:
        async with free:
            await action

    await asyncio.gather(*map(run, actions))


def check_reports(load: Load) -> None:
    """Find every device's last report in the registry."""
    registry = Registry.of(load.repository.folder)
    known = {each.device: each.report for each in registry.devices()}
    registry.close()
    for device in load.devices:
        report = known[device.identity.device]
        assert report is not None
        assert report.content_hash == device.taken
    print(f"\nAll answers were right; the last reports of {len(known)} devices are there.")


def published(folder: Path) -> Repository:
    """Return a repository with one version of each size."""
    create(folder / "versions")
    repository = Repository(folder / "versions")
    for width in WIDTHS:
        model = folder / f"{width}.safetensors"
        parameters = {"width": width}
        network = build_model("resnet1d-34", HeadConfig("aam", public=2), seed=1, **parameters)
        description = ModelDescription("resnet1d-34", FrontEndConfig(), parameters)
        save_described(model, network, description)
        with repository.changing() as state:
            made = operations.publication(repository, state, model, {}, "stable")
            signers = at_hand(repository.keys, [], None)
            operations.publish(repository, state, made, signers, "publish")
    return repository


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the main server and yield its port and its process id."""
    with (folder.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedspk", "server", "run", str(folder), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            yield int(said.rpartition(b":")[2]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def cpu_seconds(process: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantile(values: list[float], share: float) -> float:
    """Return the value that a share of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
