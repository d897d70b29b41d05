"""A main server with versions, rounds and devices of every kind, for tests of its pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from tiny_generator import make_generator
from version_repository import evaluated, keys_of, make_model
from web_server import running

from fedspk.api import Registration, Report
from fedspk.proposals import Proposal
from fedspk.release import ChannelName, in_canary
from server import operations
from server.creation import create
from server.registry import Registry
from server.repository import Repository
from server.service import Service, build_app

HOSTILE = "<script>window.broken = 1</script>'\"&" + "w" * 200


@dataclass
class Clock:
    """A clock that tests move."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        """Return the time."""
        return datetime.now(UTC) + self.ahead


@dataclass
class PageServer:
    """A running server, its parts, and tokens by role."""

    address: str
    service: Service
    clock: Clock
    tokens: Mapping[str, str]
    model: Path
    generator: Path
    devices: dict[str, str] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)

    def visitor(self, role: str = "viewer") -> httpx.Client:
        """Return a client that has logged in."""
        client = httpx.Client(base_url=self.address, follow_redirects=True)
        answer = client.post("/login", data={"token": self.tokens[role]})
        assert answer.status_code == 200, answer.text
        return client

    def api(self, path: str) -> Any:
        """Return what the API answers a viewer."""
        bearer = {"Authorization": f"Bearer {self.tokens['viewer']}"}
        answer = httpx.get(f"{self.address}/api/v1/{path}", headers=bearer)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def publish(
        self, channel: ChannelName | None = "training", forced: str | None = None, **fields: Any
    ) -> None:
        """Publish the model, or the generator, as the next version of its kind."""
        repository = self.service.repository
        draft = {**evaluated(5.0), **fields}
        file = self.generator if draft.get("kind") == "gan" else self.model
        with repository.changing() as state:
            made = operations.publication(repository, state, file, draft, channel)
            self._publish(repository, state, made, forced)

    def withdraw(self, version: int) -> None:
        """Withdraw an intermediate version."""
        repository = self.service.repository
        with repository.changing() as state:
            release = state.release
            now = self.clock().replace(microsecond=0)
            made = Proposal.following(release, {}, now, [("model", version)])
            self._publish(repository, state, made)

    def add_device(self, name: str, report: Report | None = None, canary: bool = False) -> str:
        """Register a device that is a canary or not, let it report, and return its id."""
        registry, channel = self.service.registry, self.service.view().channels.get("canary")
        names = (f"{number:032x}" for number in count(1) if number not in self.numbers)
        device = next(
            each
            for each in names
            if channel is None or in_canary(each, channel.share, channel.salt) == canary
        )
        self.numbers.add(int(device, 16))
        token = registry.invite(name).token
        registry.register(Registration(device=device, public_key="ab" * 32, token=token), 1)
        if report:
            registry.report(device, report, 2)
        self.devices[name] = device
        return device

    @staticmethod
    def _publish(
        repository: Repository, state: Any, made: Proposal, forced: str | None = None
    ) -> None:
        operations.publish(repository, state, made, keys_of(repository), "publish", forced)


@contextmanager
def page_server(folder: Path) -> Iterator[PageServer]:
    """Run a server with nothing published and no devices."""
    clock = Clock()
    create(folder / "versions")
    registry = Registry.open(f"sqlite:///{folder}/registry.sqlite", clock)
    tokens = {
        role: registry.add_operator(f"the-{role}", role)
        for role in ("viewer", "operator", "aggregator")
    }
    model = folder / "model.safetensors"
    make_model(model)
    generator = make_generator(folder / "generator.safetensors")
    service = Service(Repository(folder / "versions"), registry, {}, clock)
    with running(build_app(service)) as address:
        yield PageServer(address, service, clock, tokens, model, generator)
    registry.close()


def settled(server: PageServer) -> PageServer:
    """Publish versions of every kind and add devices in every state."""
    training = {"config": {"lr": 0.01, "note": "plain"}, "cohort_size": 96, "survivors": 90}
    server.publish("stable", training={**training, "round": 1}, thresholds=_thresholds(0.6))
    server.publish(
        "stable",
        **evaluated(4.25),
        training={**training, "round": 2, "survivors": 71, "config": {"lr": 0.02, HOSTILE: 1}},
        privacy={"epsilon": 3.5, "delta": 1e-6},
        thresholds=_thresholds(0.5),
        forced=HOSTILE,
    )
    server.publish(None, evaluation=None)
    server.publish("canary", **evaluated(4.0, corpus=HOSTILE))
    server.publish("training", intermediate=True, training={**training, "round": 3})
    server.publish(None, kind="gan", evaluation=None)
    manifests = server.service.view().manifests
    content = {each.version: each.content_hash for each in manifests if each.kind == "model"}

    def report(version: int, state: Any = "serving", **fields: Any) -> Report:
        return Report(
            version=version, content_hash=content[version], state=state, client="0.1.0", **fields
        )

    server.add_device("kitchen", report(2))
    server.add_device("sparrow", report(4), canary=True)
    server.add_device("old", report(1))
    server.add_device("busy", report(1, "updating", attempted=2))
    server.add_device("full", report(1, "failed", failure="disk full", attempted=2))
    server.add_device("mute")
    server.add_device("gone", report(2))
    server.service.registry.revoke(server.devices["gone"])
    server.service.registry.invite("W" * 64)
    return server


def _thresholds(first: float) -> list[dict[str, float]]:
    return [
        {"false_accept_rate": 0.01, "threshold": first},
        {"false_accept_rate": 0.1, "threshold": first - 0.2},
    ]
