"""A real deployment of Flower on this machine: a SuperLink with TLS and SuperNodes with keys.

Everything is made for the occasion in one folder: a certificate authority, the server's
certificate, the nodes' keys, the database, the logs. Nothing of it outlives the `with` block.

    with FlowerDeployment(folder) as deployment:
        deployment.start_nodes({"kitchen": {"device": "kitchen.json"}})
        log = deployment.run(app, {"rounds": 2})
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

from fedspk.errors import FedspkError
from fedspk.files import write_text
from fedspk.flower_environment import flower_environment
from simulations.deployment_keys import make_certificates, make_node_key
from simulations.flower_processes import (
    ConfigValue,
    check_run,
    config_text,
    end_processes,
    family_of,
    free_ports,
    send_signal,
)

_HOST = "127.0.0.1"
_LINK = "loopback"  # the SuperLink's name in Flower's configuration
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_POLL_SECONDS = "0.25"  # how often a SuperExec looks for work; quicker costs a core by itself

Watch = Callable[[], None]


class FlowerNode:
    """One SuperNode: a process group of its own, as on a device of its own."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    def log(self) -> str:
        """Return what the SuperNode and the processes of its messages have written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End the node with all its processes at once, as a power cut does."""
        if self._process.poll() is None:  # else the number may be another's by now
            send_signal(-self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self, timeout: float) -> int:
        """Return how a node that ends by itself ended.

        Raises:
            FedspkError: it goes on for longer than `timeout` seconds.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise FedspkError(f"{self.name} still runs after {timeout:g} s.") from error

    def is_connected(self) -> bool:
        """Whether the SuperLink has let the node in.

        Raises:
            FedspkError: the node has ended.
        """
        if self._process.poll() is not None:
            raise FedspkError(f"{self.name} has ended: {_tail(self.log())}")
        return "SuperNode ID:" in self.log()


class FlowerDeployment:
    """A SuperLink that lets in registered nodes only, and its nodes.

    Args:
        folder: an empty folder for everything that the deployment writes.
        hub: where the SuperLink finds signed bundles (see `aggregator.bundles`).
        trusted_entities: file of the keys whose bundles the nodes run; without it they run any.
    """

    def __init__(
        self, folder: Path, *, hub: str = "", trusted_entities: Path | None = None
    ) -> None:
        self._folder = folder = folder.absolute()
        self._hub = hub
        self._trusted_entities = trusted_entities
        (self._port,) = free_ports(1)
        self._home = folder / "home"
        self.address = f"{_HOST}:{self._port}"
        self.authority = folder / "ca.crt"
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._start_superlink()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the deployment; calling it again does nothing."""
        pids = {each.pid for each in self._started if each.poll() is None}
        # A SuperLink's SuperExec has a group of its own, and what lost its parent has only a group.
        end_processes(family_of(pids) | {-pid for pid in pids})
        for each in self._started:
            each.wait()
        self._started.clear()

    def start_nodes(self, configs: Mapping[str, Mapping[str, ConfigValue]]) -> list[FlowerNode]:
        """Register nodes, start them with their own configurations, wait until they are connected.

        Args:
            configs: each node's configuration (`--node-config`) by the node's name.

        Raises:
            FedspkError: a node cannot be registered or does not come up.
        """
        self.register_nodes(configs)
        ports = free_ports(len(configs))
        nodes = [
            self._start_node(name, config, port)
            for (name, config), port in zip(configs.items(), ports, strict=True)
        ]
        for node in nodes:
            _await(node.is_connected, f"{node.name} did not connect")
        return nodes

    def register_nodes(self, names: Iterable[str]) -> dict[str, Path]:
        """Let the SuperLink know nodes and return the files of their private keys by name.

        Raises:
            FedspkError: a node cannot be registered.
        """
        registrations = {}
        for name in names:
            public_key = make_node_key(self._node_key(name))
            command = ["flwr", "supernode", "register", str(public_key), _LINK, "--name", name]
            registrations[name] = self._start(command, self._home, f"register-{name}.log")
        for name, registration in registrations.items():
            if registration.wait() != 0:
                log = (self._folder / f"register-{name}.log").read_text(encoding="utf-8")
                raise FedspkError(f"{name} cannot be registered: {_tail(log)}")
        return {name: self._node_key(name) for name in registrations}

    def start_unregistered_node(self, name: str) -> FlowerNode:
        """Start a node with a key that the SuperLink does not know."""
        make_node_key(self._node_key(name))
        return self._start_node(name, {}, *free_ports(1))

    def run(
        self,
        app: Path | str,
        run_config: Mapping[str, ConfigValue],
        *,
        watch: Watch | None = None,
        timeout: float = 3600.0,
    ) -> str:
        """Run a Flower app on the nodes and return what the run logged.

        Args:
            app: the folder of its pyproject.toml, or `@publisher/name==1.2.3` of the hub.
            run_config: overrides of the app's `[tool.flwr.app.config]`.
            watch: called several times a second while the run goes on.
            timeout: seconds.

        Raises:
            FedspkError: the run failed or took too long.
        """
        command = ["flwr", "run", str(app), _LINK, "--stream"]
        command += ["--run-config", config_text(run_config)]
        process = self._start(command, self._home, "run.log")
        deadline = time.monotonic() + timeout
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise FedspkError(f"flwr run took longer than {timeout:g} s.")
            if watch is not None:
                watch()
            time.sleep(_LOOK_SECONDS)
        log = (self._folder / "run.log").read_text(encoding="utf-8", errors="replace")
        check_run(process.returncode, log)
        return log

    def _start_superlink(self) -> None:
        certificate, key = make_certificates(self._folder)
        write_text(
            self._home / "config.toml",
            f'[superlink]\ndefault = "{_LINK}"\n\n[superlink.{_LINK}]\n'
            f'address = "{self.address}"\nroot-certificates = "{self.authority}"\n',
        )
        command = ["flower-superlink", "--host", _HOST, "--port", str(self._port)]
        command += ["--ssl-ca-certfile", str(self.authority)]
        command += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        command += ["--database", str(self._folder / "state.db")]
        process = self._start(command, self._folder / "superlink", "superlink.log")

        def answers() -> bool:
            if process.poll() is not None:
                log = (self._folder / "superlink.log").read_text(encoding="utf-8")
                raise FedspkError(f"The SuperLink has ended: {_tail(log)}")
            with socket.socket() as probe:
                return probe.connect_ex((_HOST, self._port)) == 0

        _await(answers, "the SuperLink did not come up")

    def _start_node(self, name: str, config: Mapping[str, ConfigValue], port: int) -> FlowerNode:
        command = ["flower-supernode", "--root-certificates", str(self.authority)]
        command += ["--superlink", self.address, "--port", str(port)]
        command += ["--auth-supernode-private-key", str(self._node_key(name))]
        command += ["--node-config", config_text(config)]
        if self._trusted_entities is not None:
            command += ["--trusted-entities", str(self._trusted_entities)]
        log = f"{name}.log"
        process = self._start(command, self._folder / "nodes" / name / "home", log)
        return FlowerNode(name, process, self._folder / log)

    def _node_key(self, name: str) -> Path:
        return self._folder / "nodes" / name / "key"

    def _start(self, command: list[str], home: Path, log: str) -> subprocess.Popen[bytes]:
        environment = flower_environment(
            home,
            FLWR_SUPEREXEC_TASK_POLL_INTERVAL=_POLL_SECONDS,
            OMP_NUM_THREADS="1",  # all nodes share this machine
            **({"FLWR_SUPERGRID_API_URL": self._hub} if self._hub else {}),
        )
        with (self._folder / log).open("wb") as file:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a node's group is the whole tree of its processes
            )
        self._started.append(process)
        return process


def _await(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise FedspkError(f"After {_START_SECONDS:g} s {failure}.")
        time.sleep(_LOOK_SECONDS)


def _tail(log: str) -> str:
    return " ".join(log.split())[-500:]
