"""What a version costs: the CPU time of a device's check, and the time to publish.

    python benchmarks/versions.py

Everything runs on loopback: python-tuf's client as devices use it, against a web server in another
process. Medians.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from fedspk.engine import ModelDescription, save_described
from fedspk.features import FrontEndConfig
from fedspk.model import HeadConfig, build_model
from fedspk.release import model_path
from server import operations, upkeep
from server.creation import create
from server.keyring import at_hand
from server.repository import Repository

ENCODERS = ("tdnn", "vggm-small", "resnet1d-34")
REPEATS = 50


def main() -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        create(folder / "versions")
        repository = Repository(folder / "versions")
        address = serve(repository.folder / "public")
        print("| encoder | model file, MB | publish, ms | update, CPU ms | no change, CPU ms |")
        print("|---|---|---|---|---|")
        for encoder in ENCODERS:
            print(f"| {encoder} | {' | '.join(measured(folder, repository, encoder, address))} |")
        renewal = [
            timed(lambda: upkeep.renew(repository, keys(repository)), time.perf_counter)
            for _ in range(REPEATS)
        ]
        print(f"\nrenew: {1e3 * statistics.median(renewal):.0f} ms")


def measured(folder: Path, repository: Repository, encoder: str, address: str) -> list[str]:
    """Return a row of the table."""
    model = folder / f"{encoder}.safetensors"
    network = build_model(encoder, HeadConfig("aam", public=2), seed=1)
    save_described(model, network, ModelDescription(encoder, FrontEndConfig()))
    publish(repository, model)  # the first time builds caches of the libraries
    wall = [timed(lambda: publish(repository, model), time.perf_counter) for _ in range(10)]
    device = Device(folder / f"device-{encoder}", address, repository)
    updates = []
    for _ in range(5):
        newest = publish(repository, model)
        updates.append(timed(partial(device.update, newest), time.process_time))
    checks = [timed(device.refresh, time.process_time) for _ in range(REPEATS)]
    size = f"{model.stat().st_size / 1e6:.1f}"
    medians = [statistics.median(each) for each in (wall, updates, checks)]
    return [size, *(f"{1e3 * each:.1f}" for each in medians)]


class Device:
    """A long-lived device: it keeps its connections and its trusted metadata."""

    def __init__(self, folder: Path, address: str, repository: Repository) -> None:
        folder.mkdir()
        root = (repository.metadata / "1.root.json").read_bytes()
        self._arguments: dict[str, Any] = {
            "metadata_dir": str(folder),
            "metadata_base_url": f"{address}/metadata/",
            "target_dir": str(folder),
            "target_base_url": f"{address}/targets/",
            "bootstrap": root,
            "fetcher": Urllib3Fetcher(),
            "config": UpdaterConfig(),
        }

    def refresh(self) -> Updater:
        """Look whether there is anything new."""
        updater = Updater(**self._arguments)
        updater.get_targetinfo("channels/stable.json")
        return updater

    def update(self, target: str) -> None:
        """Fetch a model that was published since."""
        updater = self.refresh()
        info = updater.get_targetinfo(target)
        assert info is not None
        updater.download_target(info)


def publish(repository: Repository, model: Path) -> str:
    """Publish a model file as the next version, named by stable, and return its target."""
    with repository.changing() as state:
        made = operations.publication(repository, state, model, {}, "stable")
        operations.publish(repository, state, made, keys(repository), "publish")
    ((kind, version),) = made.changes.versions
    return model_path(kind, version)


def keys(repository: Repository) -> dict[str, Any]:
    """Return the private keys, read anew as a command does."""
    return at_hand(repository.keys, [], None)


def timed(action: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds that an action takes by a clock."""
    start = clock()
    action()
    return clock() - start


def serve(folder: Path) -> str:
    """Serve a folder from a process of its own and return the address."""
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=_serve, args=(folder, theirs), daemon=True).start()
    return f"http://127.0.0.1:{ours.recv()}"


def _serve(folder: Path, pipe: Connection) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        pipe.send(server.server_port)
        server.serve_forever()


if __name__ == "__main__":
    main()
