"""A device in a federation: Flower's SuperNode over a user's recordings, all of it in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from clients import keeper
from clients.enrolment import IDENTITY_FILE
from clients.followed import read_server
from clients.memory_folder import memory_folder
from clients.vault import Vault
from clients.voice_dataset import write_dataset
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.files import write_bytes, write_text
from fedspk.flower_environment import flower_environment
from fedspk.remote import RemoteVersions

_POLL_S = 0.5

NodeValue = int | float | str


@dataclass(frozen=True)
class Federation:
    """How a device reaches its federation, and what it insists on there.

    Args:
        superlink: HOST:PORT.
        register: the file of the fleet's public keys.
        certificates: file of the authorities to believe, in PEM; None: the system's.
        node_key: file of the key that opens the connection; None: the SuperLink asks for none.
        trusted_entities: file of the keys whose signed code is run; None runs any.
        minimum_cohort, minimum_noise: see `clients.client_app`.
        port: of this machine's loopback, for Flower's own processes.
    """

    superlink: str
    register: Path
    certificates: Path | None = None
    node_key: Path | None = None
    trusted_entities: Path | None = None
    minimum_cohort: int = 5
    minimum_noise: float = 0.0
    port: int = 9094


def run_supernode(
    vault: Vault,
    user: str,
    impostors: Path | None,
    federation: Federation,
    stop: threading.Event,
    index: int = 0,
) -> None:
    """Take part in a federation until `stop` is set.

    Features, identity, private parts of the model and what the device remembers of secure sums are
    in memory alone and gone at the end.

    Args:
        vault: the device's, which follows a main server.
        user, impostors, index: see `write_dataset`.
        federation: where to take part.
        stop: ends it.

    Raises:
        FedspkError: the device follows no main server, nothing is published there, there is no
            speech, no generator in place of impostors, or the SuperNode ended by itself.
    """
    server = read_server(vault)
    if server is None:
        raise FedspkError(
            "this device follows no main server, and trains from no model that is not published; "
            "see `fedspk device init --server`."
        )
    with memory_folder() as folder:
        private = folder / "device"
        write_bytes(folder / "root.json", server.root)
        trusted = private / "versions" / "trusted"
        versions = RemoteVersions(server.address, trusted, server.root, server.ca)
        front_end = _front_end(versions, vault.device)
        if impostors is None:
            _require_generator(versions, front_end)
        description = write_dataset(vault, user, impostors, front_end, folder, index)
        vault.identity().save(private / IDENTITY_FILE)
        settings: dict[str, NodeValue] = {
            "device": str(description),
            "register": str(federation.register.absolute()),
            "server": server.address,
            "server-root": str(folder / "root.json"),
            "store": str(private / "store"),  # else a run could say where the device writes
            "minimum-cohort": federation.minimum_cohort,
            "minimum-noise": federation.minimum_noise,
        }
        if server.ca is not None:
            settings["server-ca"] = str(server.ca)
        write_text(folder / "node.toml", _toml(settings))
        _run(_command(federation, folder / "node.toml"), folder, stop)


def _front_end(versions: RemoteVersions, device: str) -> FrontEndConfig:
    """Return the front end of what is trained, or else of what the device is to run."""
    channel = versions.channel("training") or versions.channel_of(device)
    if channel is None:
        raise FedspkError(f"{versions.address}: no model is published yet; try again later.")
    architecture = versions.manifest("model", channel.version).architecture
    assert architecture is not None
    return architecture.description().front_end


def _require_generator(versions: RemoteVersions, front_end: FrontEndConfig) -> None:
    """Accept a server with an impostor generator for this front end; a run names which it takes."""
    found = versions.generators()
    for version in reversed(found):
        generator = versions.manifest("gan", version).generator
        if generator is not None and generator.front_end == asdict(front_end):
            return
    fault = (
        f"none of its impostor generators makes what the model hears ({front_end})"
        if found
        else "no impostor generator is published"
    )
    raise FedspkError(
        f"{versions.address}: {fault}; give others' speech with --impostors, or let the operator "
        "publish a generator (`fedspk server publish DIR --model generator.safetensors`)."
    )


def _command(federation: Federation, settings: Path) -> list[str]:
    command = [str(Path(sys.executable).parent / "flower-supernode")]
    command += ["--superlink", federation.superlink, "--port", str(federation.port)]
    command += ["--node-config", str(settings)]
    files = {
        "--root-certificates": federation.certificates,
        "--auth-supernode-private-key": federation.node_key,
        "--trusted-entities": federation.trusted_entities,
    }
    for option, path in files.items():
        if path is not None:
            command += [option, str(path.absolute())]
    return command


def _run(command: list[str], folder: Path, stop: threading.Event) -> None:
    """Run a command with all its helpers in a folder until `stop` is set, or this process dies."""
    closing, held = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", keeper.__file__, str(closing), str(folder), *command],
        env=flower_environment(folder / "flower"),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        pass_fds=[closing],
        start_new_session=True,  # its group is the whole tree of its processes
        umask=0o077,
    )
    os.close(closing)
    try:
        while not stop.wait(_POLL_S):
            if process.poll() is not None:
                raise FedspkError(
                    f"the SuperNode has ended with exit code {process.returncode}; what it said "
                    "above tells why."
                )
    finally:
        _end(process)
        os.close(held)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
        except ProcessLookupError:
            break
        try:
            process.wait(keeper.FAREWELL_S)
        except subprocess.TimeoutExpired:
            continue


def _toml(settings: Mapping[str, NodeValue]) -> str:
    """Return settings as TOML; a string of JSON is one of TOML."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
