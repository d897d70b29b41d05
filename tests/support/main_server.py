"""A main server with its registry, and what operators and devices send to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from version_repository import keys_of
from web_server import running

from fedspk.api import API, Registration, Report, SignedRequest
from fedspk.secagg.keys import Identity
from server.registry import Registry, utc_now
from server.repository import Repository, Signers
from server.service import Service, build_app


def make_service(repository: Repository, signers: Signers | None = None, **more: Any) -> Service:
    """Return a service over a repository with its keys at hand, or other ones."""
    registry = Registry.of(repository.folder, more.get("clock", utc_now))
    return Service(
        repository, registry, keys_of(repository) if signers is None else signers, **more
    )


@contextmanager
def serving(service: Service) -> Iterator[httpx.Client]:
    """Serve it on loopback and yield a client of its API."""
    with running(build_app(service)) as address, httpx.Client(base_url=address) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    """Return the header with a token."""
    return {"Authorization": f"Bearer {token}"}


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return round(time.time() * 1000)


@dataclass
class SigningDevice:
    """A device by its number, and what it sends."""

    number: int
    identity: Identity = field(init=False)

    def __post_init__(self) -> None:
        self.identity = Identity.generate(f"{self.number:032x}")

    @property
    def id(self) -> str:
        """What it is called."""
        return self.identity.device

    def registration(self, token: str) -> Registration:
        """Return what it registers with."""
        return Registration(device=self.id, public_key=self.identity.public.hex(), token=token)

    def register(
        self, client: httpx.Client, token: str, time_ms: int | None = None
    ) -> httpx.Response:
        """Register."""
        return self.send(client, "POST", "/devices", self.registration(token).to_json(), time_ms)

    def report(
        self, client: httpx.Client, time_ms: int | None = None, **fields: Any
    ) -> httpx.Response:
        """Report."""
        body = a_report(**fields).to_json()
        return self.send(client, "PUT", f"/devices/{self.id}/report", body, time_ms)

    def send(
        self,
        client: httpx.Client,
        method: str,
        path: str,
        body: bytes,
        time_ms: int | None = None,
    ) -> httpx.Response:
        """Send a signed request to a path below the API's."""
        signed = SignedRequest.sign(self.identity, method, API + path, body, time_ms or now_ms())
        headers = {"Authorization": signed.header(), "Content-Type": "application/json"}
        return client.request(method, API + path, content=body, headers=headers)


def a_report(**fields: Any) -> Report:
    """Return a report of a device that serves version 1, but for some fields."""
    known = {"version": 1, "content_hash": "0" * 64, "state": "serving", "client": "0.1.0"}
    return Report.model_validate({**known, **fields})


def write_settings(folder: Path, mode: int = 0o600, **values: str) -> None:
    """Write `server.toml`."""
    path = folder / "server.toml"
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in values.items()))
    path.chmod(mode)
