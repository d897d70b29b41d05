"""A main server on loopback whose other party's key lies elsewhere, and runs that publish on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiny_federation import tiny_fleet, tiny_nodes
from web_server import running

from aggregator.handover import Handover
from aggregator.publisher import MainServer
from aggregator.server_app import app
from fedspk.proposals import versions
from fedspk.release import Channel, ChannelName, Manifest
from fedspk.rounds import RunConfig
from fedspk.weights import WeightStore
from server.creation import AGGREGATOR, create
from server.keyring import at_hand
from server.registry import Registry
from server.repository import Repository
from server.service import Service, build_app
from simulations.executors import SerialExecutor
from simulations.grid import LocalGrid


@dataclass
class Parties:
    """A main server's repository and address, and the files that the aggregator has of it."""

    repository: Repository
    address: str
    key: Path
    token: Path
    root: Path

    def run_config(self) -> dict[str, str]:
        """Return what a run says of the server."""
        return {
            "server": self.address,
            "server-root": str(self.root),
            "server-key": str(self.key),
            "server-token-file": str(self.token),
        }

    def main_server(self, folder: Path) -> MainServer:
        """Return the server as the aggregator sees it."""
        return MainServer.open(self.address, folder, root=self.root, key=self.key, token=self.token)

    def handover(self, folder: Path, config: RunConfig, store: WeightStore) -> Handover:
        """Return a run's way to the server."""
        return Handover(self.main_server(folder), config, store)

    def numbers(self) -> list[int]:
        """Return the versions that are published."""
        return versions(self.repository.read().released, "model")

    def manifest(self, version: int) -> Manifest:
        """Return the manifest of a version."""
        return self.repository.manifest(self.repository.read(), "model", version)

    def channel(self, name: ChannelName = "training") -> Channel | None:
        """Return a channel."""
        return self.repository.channel(self.repository.read(), name)


@contextmanager
def parties(folder: Path) -> Iterator[Parties]:
    """Run a main server without the aggregator's key."""
    create(folder / "versions")
    repository = Repository(folder / "versions")
    (held,) = repository.keys.glob(f"{AGGREGATOR}.*.pem")
    key = held.rename(folder / "aggregator.pem")
    registry = Registry.open(f"sqlite:///{folder / 'registry.sqlite'}")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(registry.add_operator("aggregator", "aggregator") + "\n")
    service = Service(repository, registry, at_hand(repository.keys, [], None))
    with running(build_app(service)) as address:
        root = repository.metadata / "1.root.json"
        yield Parties(repository, address, key, token, root)
    registry.close()


def run_app(
    folder: Path, config: RunConfig, run_config: dict[str, str], node: dict[str, str], devices: int
) -> None:
    """Run the aggregator's ServerApp on tiny devices that share no folder with it."""
    paths = tiny_fleet(folder / "fleet", devices)
    (folder / "config.json").write_text(config.to_json())
    nodes = [
        {**each, **node, "store": str(folder / "of-devices")} if node else dict(each)
        for each in tiny_nodes(paths)
    ]
    settings = {
        "config": str(folder / "config.json"),
        "store": str(folder / "store"),
        "checkpoints": str(folder / "checkpoints"),
        "devices": str(folder / "fleet"),
        **run_config,
    }
    grid = LocalGrid("clients.client_app:app", nodes, SerialExecutor(), run_config=settings)
    grid.run_server_app(app)
