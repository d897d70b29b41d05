"""The running device: how long a verification takes over the socket, idle and during an update.

    python benchmarks/device_service.py [--encoder resnet1d-34] [--users 10] [--json FILE]

A main server on loopback publishes version 2 of a model with random weights (speed does not depend
on them) while a program asks the running device again and again, ten times a second, who speaks.
The update is done in a process of low priority, as `fedspk device run` does it, and for comparison
in one of normal priority and in a thread of the service. The process is halted for every other
second: so idle and update are measured under the same load of the machine. After 90 s the
measurement ends, even if the update has not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from device import ask, voices, write_model  # noqa: E402
from version_repository import publish, served  # noqa: E402

from clients import service, update_process  # noqa: E402
from clients.followed import MainServer  # noqa: E402
from clients.recogniser import Recogniser  # noqa: E402
from clients.socket_server import UnixConnection  # noqa: E402
from clients.update_process import UpdateProcess  # noqa: E402
from clients.updater import Updater, create_following_device  # noqa: E402
from clients.vault import Vault  # noqa: E402
from fedspk.api import Report  # noqa: E402
from fedspk.audio import save_audio  # noqa: E402
from fedspk.files import write_json  # noqa: E402
from server.creation import create  # noqa: E402
from server.repository import Repository  # noqa: E402

MODES = ("process of low priority", "process of normal priority", "thread")
IDLE_S, MOST_S, EVERY_S, TURN_S, POLL_S = 15.0, 90.0, 0.1, 1.0, 1.0


@dataclass
class Asked:
    """A request: how long it took (seconds), the model that answered, whether an update ran."""

    took: float
    model: str | None
    in_update: bool


def serve(home: Path, mode: str) -> None:
    """Be the running device."""
    if mode == "process of normal priority":
        update_process._NICE = 0
    if mode == "thread":
        UpdateProcess.run = update_here  # type: ignore[method-assign]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    service.run_service(Vault.open(home, ask), home / "s", POLL_S, stop, random.Random(1))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss / 1024}))


def update_here(process: UpdateProcess, _: object) -> Report:
    """Update in this thread; the file "updating" is there meanwhile."""
    sign = process._vault.home / "updating"
    sign.touch()
    try:
        return Updater(process._vault).check().report()
    finally:
        sign.unlink()


def ask_once(path: Path, body: bytes) -> tuple[str | None, bool]:
    """Return the model that answered, None if it failed."""
    connection = UnixConnection(path, 30.0)
    try:
        connection.request("POST", "/verify?user=user%200&threshold=-1", body)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        return (content.get("model") if answer.status == 200 else None), answer.status == 200
    except OSError:
        return None, False
    finally:
        connection.close()


def figures(asked: list[Asked]) -> dict[str, float]:
    """Return the distribution of answers, in milliseconds."""
    took = 1000 * np.array([each.took for each in asked])
    return {
        "requests": len(asked),
        "failed": sum(each.model is None for each in asked),
        "p50_ms": float(np.percentile(took, 50)),
        "p99_ms": float(np.percentile(took, 99)),
        "worst_ms": float(took.max()),
    }


def measure(mode: str, encoder: str, users: int, folder: Path) -> dict[str, object]:
    """Return the figures of one way to update."""
    models = [folder / "1.safetensors", folder / "2.safetensors"]
    for seed, path in enumerate(models):
        write_model(path, encoder, seed + 1)
    create(folder / "server")
    repository = Repository(folder / "server")
    publish(repository, models[0])
    with served(repository.folder / "public") as address:
        root = (repository.metadata / "1.root.json").read_bytes()
        server = MainServer(address, root)
        vault = create_following_device(folder / "home", server, "passphrase", ask)
        device, speech = Recogniser(vault), voices(users)
        for number, recordings in enumerate(speech):
            device.enrol(f"user {number}", recordings[:-1])
        save_audio(folder / "test.wav", speech[0][-1])
        body = (folder / "test.wav").read_bytes()
        command = [sys.executable, __file__, "--serve", mode, "--home", str(vault.home)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
            try:
                found = watch(running.pid, vault.home / "s", body, repository, models[1])
            finally:
                running.terminate()
            return found | {"process": json.loads(running.communicate()[0])}


def watch(
    pid: int, path: Path, body: bytes, repository: Repository, newer: Path
) -> dict[str, object]:
    """Ask again and again, publish meanwhile, and return the figures."""
    while not ask_once(path, body)[1]:
        time.sleep(0.1)
    asked: list[Asked] = []
    first = ask_once(path, body)[0]
    publishing = threading.Thread(target=publish, args=(repository, newer))
    begun = turn = time.monotonic()
    while (not asked or asked[-1].model in (first, None)) and turn < begun + MOST_S:
        time.sleep(max(0.0, turn - time.monotonic()))
        turn = max(turn + EVERY_S, time.monotonic())
        if not publishing.ident and turn > begun + IDLE_S:
            publishing.start()
        in_update = let_update(pid, is_on=int(turn / TURN_S) % 2 == 0)
        in_update |= path.with_name("updating").exists()
        at = time.monotonic()
        model, _ = ask_once(path, body)
        asked.append(Asked(time.monotonic() - at, model, in_update))
    publishing.join()
    return {
        "finished": asked[-1].model not in (first, None),
        "idle": figures([each for each in asked if not each.in_update]),
        "update": figures([each for each in asked if each.in_update]),
    }


def let_update(pid: int, is_on: bool) -> bool:
    """Halt the update of a service or let it go on; say whether it is going on."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    updates = [int(child) for each in children for child in each.read_text().split()]
    for update in updates:
        os.kill(update, signal.SIGCONT if is_on else signal.SIGSTOP)
    return bool(updates) and is_on


def main() -> None:
    """Print a markdown table; write the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="resnet1d-34")
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.home, arguments.serve)
        return
    found = {}
    for mode in arguments.modes:
        with tempfile.TemporaryDirectory() as folder:
            found[mode] = measure(mode, arguments.encoder, arguments.users, Path(folder))
        print(mode, json.dumps(found[mode]), flush=True)
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
