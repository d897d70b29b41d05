"""The device: how long verification, enrolment and a change of model take.

    python benchmarks/device.py [--users 10] [--json FILE]

For a small and a 7.8-million-weight encoder with random weights (speed does not depend on them) and
made voices of 3.5 s: a cold `fedspk device verify` as a person would type it, a verification in a
running process, and the change to another model with all users' re-enrolment, compilation included.
Then a main server on loopback: a look that finds nothing new, a whole update (download, checks,
compilation, re-enrolment), the first verification after another process has changed the version,
and the return to weights at hand.
CPU seconds stand beside wall-clock ones: on a busy machine they are what to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clients.compiled import compile_model
from clients.followed import MainServer
from clients.recogniser import Recogniser, create_device
from clients.updater import Updater, create_following_device
from clients.vault import Vault
from clients.versions import Threshold
from fedspk.audio import SAMPLE_RATE, FloatArray, save_audio
from fedspk.corpora.synthetic import SyntheticConfig, synthetic_corpus
from fedspk.engine import ModelDescription, save_described
from fedspk.files import write_json
from fedspk.model import HeadConfig, build_model
from server import operations
from server.creation import create
from server.keyring import at_hand
from server.repository import Repository

SECONDS, RECORDINGS, REPEATS, COLD_REPEATS = 3.5, 5, 50, 10
THRESHOLD = Threshold(0.5, 0.01)
PASSPHRASE = b"correct horse battery"


def ask() -> bytes:
    return PASSPHRASE


def voices(users: int) -> list[list[FloatArray]]:
    """Return recordings of 3.5 s for every user, and one more to verify with."""
    config = SyntheticConfig(speakers=users, utterances=RECORDINGS + 1, sessions=1)
    corpus = synthetic_corpus(config, seed=0)
    sounds = [corpus.source.read(each) for each in corpus.utterances]
    whole = [np.resize(sound, round(SECONDS * SAMPLE_RATE)) for sound in sounds]
    each = RECORDINGS + 1
    return [whole[user * each : (user + 1) * each] for user in range(users)]


def write_model(path: Path, encoder: str, seed: int) -> float:
    """Write a model with random weights and return its millions of them."""
    model = build_model(encoder, HeadConfig(), seed=seed)
    save_described(path, model, ModelDescription(encoder))
    return sum(weights.numel() for weights in model.encoder.parameters()) / 1e6


def timed(run: Callable[[], object], repeats: int, who: int) -> dict[str, float]:
    """Return median, best and worst wall-clock and median CPU milliseconds of `run`."""
    wall, cpu = [], []
    for _ in range(repeats):
        before, started = resource.getrusage(who), time.perf_counter()
        run()
        wall.append(time.perf_counter() - started)
        after = resource.getrusage(who)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {
        "wall_ms": 1e3 * statistics.median(wall),
        "best_wall_ms": 1e3 * min(wall),
        "worst_wall_ms": 1e3 * max(wall),
        "cpu_ms": 1e3 * statistics.median(cpu),
    }


def measure(encoder: str, users: int, folder: Path) -> dict[str, object]:
    """Return the figures of one encoder."""
    first, second = folder / "1.safetensors", folder / "2.safetensors"
    weights = write_model(first, encoder, 1)
    write_model(second, encoder, 2)
    speech = voices(users)
    vault = create_device(folder / "home", compile_model(first), [THRESHOLD], "passphrase", ask)
    device = Recogniser(vault)
    for number, recordings in enumerate(speech):
        device.enrol(f"user {number}", recordings[:RECORDINGS])
    test, file, passphrase = speech[0][RECORDINGS], folder / "test.wav", folder / "passphrase"
    save_audio(file, test)
    passphrase.touch(0o600)
    passphrase.write_bytes(PASSPHRASE)
    command = [sys.executable, "-m", "fedspk", "device", "verify", "--user", "user 0"]
    command += ["--home", str(vault.home), "--passphrase-file", str(passphrase), str(file)]
    device.verify("user 0", test, THRESHOLD)
    return {
        "million_weights": weights,
        "cold": timed(
            lambda: subprocess.run(command, capture_output=True, check=False),
            COLD_REPEATS,
            resource.RUSAGE_CHILDREN,
        ),
        "running": timed(
            lambda: device.verify("user 0", test, THRESHOLD), REPEATS, resource.RUSAGE_SELF
        ),
        "identify": timed(lambda: device.identify(test, THRESHOLD), REPEATS, resource.RUSAGE_SELF),
        "open": timed(lambda: Vault.open(vault.home, ask), REPEATS, resource.RUSAGE_SELF),
        "change": timed(
            lambda: device.use_model(compile_model(second), [THRESHOLD]), 1, resource.RUSAGE_SELF
        ),
        "return": timed(device.use_previous, 1, resource.RUSAGE_SELF),
    }


def measure_following(encoder: str, users: int, folder: Path) -> dict[str, object]:
    """Return the figures of a device that follows a main server."""
    first, second = folder / "1.safetensors", folder / "2.safetensors"
    write_model(first, encoder, 1)
    write_model(second, encoder, 2)
    speech = voices(users)
    create(folder / "versions")
    repository = Repository(folder / "versions")
    publish(repository, first)
    root = (repository.metadata / "1.root.json").read_bytes()
    program = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"]
    with subprocess.Popen(
        [*program, repository.folder / "public"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split(" port ")[1].split()[0]
            followed = MainServer(f"http://127.0.0.1:{port}", root)
            vault = create_following_device(folder / "home", followed, "passphrase", ask)
            device = Recogniser(vault)
            for number, recordings in enumerate(speech):
                device.enrol(f"user {number}", recordings[:RECORDINGS])
            update = Updater(vault).check
            test = speech[0][RECORDINGS]
            update()
            idle = timed(update, REPEATS, resource.RUSAGE_SELF)
            publish(repository, second)
            whole = timed(update, 1, resource.RUSAGE_SELF)
            after = timed(lambda: device.verify("user 0", test, THRESHOLD), 1, resource.RUSAGE_SELF)
            roll_back(repository, 1)
            back = timed(update, 1, resource.RUSAGE_SELF)
        finally:
            server.terminate()
    return {"no news": idle, "update": whole, "first after": after, "rolled back": back}


def publish(repository: Repository, model: Path) -> None:
    """Publish a model as the next version, for the channel stable."""
    signers = at_hand(repository.keys, [], None)
    with repository.changing() as state:
        made = operations.publication(repository, state, model, {}, "stable")
        operations.publish(repository, state, made, signers, "publish")


def roll_back(repository: Repository, to: int) -> None:
    """Publish an old version again."""
    with repository.changing() as state:
        made = operations.rollback(repository, state, to)
        signers = at_hand(repository.keys, [], None)
        operations.publish(repository, state, made, signers, "rollback")


def main() -> None:
    """Print a markdown table; write the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {}
    for encoder in ("tdnn", "resnet1d-34"):
        with tempfile.TemporaryDirectory() as folder:
            figures[encoder] = measure(encoder, arguments.users, Path(folder))
        with tempfile.TemporaryDirectory() as folder:
            figures[encoder] |= measure_following(encoder, arguments.users, Path(folder))
    names = [name for name in figures["tdnn"] if name != "million_weights"]
    print("| ms: median wall (best; CPU) | " + " | ".join(figures) + " |")
    print("|---" * (1 + len(figures)) + "|")
    for name in names:
        cells = [found[name] for found in figures.values()]
        row = [
            f"{each['wall_ms']:.1f} ({each['best_wall_ms']:.1f}; {each['cpu_ms']:.1f})"
            for each in cells
            if isinstance(each, dict)
        ]
        print(f"| {name} | " + " | ".join(row) + " |")
    if arguments.json:
        write_json(arguments.json, {"machine": platform.platform(), **figures})
    print(json.dumps({name: found["million_weights"] for name, found in figures.items()}))


if __name__ == "__main__":
    main()
