"""`flwr run` on Flower's own simulation engine, leaving nothing behind.

Flower starts a SuperLink daemon for a local run and keeps it. Here it gets a home folder, a Ray and
ports of its own, no telemetry, no update check and no package installation, and ends with the run.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from fedspk.errors import FedspkError

_FAREWELL_SECONDS = 10.0
_FAILED = "Exit Code:"
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

ConfigValue = bool | int | float | str


def flower_run(
    app: Path,
    *,
    nodes: int,
    cpus: int,
    home: Path,
    run_config: Mapping[str, ConfigValue] | None = None,
    timeout: float = 3600.0,
) -> str:
    """Run a Flower app folder with so many simulated nodes and return what it logged.

    Args:
        app: the folder of its pyproject.toml.
        nodes: simulated SuperNodes, one CPU each.
        cpus: CPUs that Ray may use.
        home: an empty folder for Flower's own files.
        run_config: overrides of the app's `[tool.flwr.app.config]`.
        timeout: seconds.

    Raises:
        FedspkError: the run failed or took too long.
    """
    port, control_port = free_ports(2)
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **_QUIET,
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control_port),
        "RAY_ADDRESS": "",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    federation = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": cpus,
        "init-args-log-to-driver": False,
    }
    command = ["flwr", "run", str(app), "local", "--stream"]
    command += ["--federation-config", _toml(federation)]
    if run_config:
        command += ["--run-config", _toml(run_config)]
    with ExitStack() as ending:
        # Ray's own folder, with a short name for its sockets: other Rays stay out of sight.
        environment["RAY_TMPDIR"] = ending.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        ending.callback(_end_superlink, port)
        try:
            run = subprocess.run(
                command,
                env=environment,
                cwd=app,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FedspkError(f"flwr run took longer than {timeout:g} s.") from error
    log = run.stdout + run.stderr
    if run.returncode != 0 or _FAILED in log:  # the command itself succeeds when the run does not
        raise FedspkError(f"flwr run failed: {' '.join(log.split())[-2000:]}")
    return log


def _toml(values: Mapping[str, ConfigValue]) -> str:
    parts = []
    for name, value in values.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        parts.append(f"{name}='{text}'" if isinstance(value, str) else f"{name}={text}")
    return " ".join(parts)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _end_superlink(port: int) -> None:
    """End the SuperLink of this port and whatever it started."""
    table = _processes()
    family = {
        pid
        for pid, (_, command) in table.items()
        if "flower-superlink" in command and f"--port {port}" in command
    }
    grown = True
    while grown:
        children = {pid for pid, (parent, _) in table.items() if parent in family}
        grown = not children <= family
        family |= children
    for ending in (signal.SIGTERM, signal.SIGKILL):
        for pid in family:
            _signal(pid, ending)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while (family := family & _processes().keys()) and time.monotonic() < deadline:
            time.sleep(0.05)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _processes() -> dict[int, tuple[int, str]]:
    """Return parent and command line of every process that has not ended yet, by id."""
    listing = subprocess.run(
        ["ps", "-axww", "-o", "pid=,ppid=,stat=,command="],
        capture_output=True,
        text=True,
        check=True,
    )
    table = {}
    for line in listing.stdout.splitlines():
        pid, parent, state, command = line.split(None, 3)
        if not state.startswith("Z"):
            table[int(pid)] = (int(parent), command)
    return table
