"""`flwr run` on Flower's own simulation engine, leaving nothing behind.

Flower starts a SuperLink daemon for a local run and keeps it. Here it gets a home folder, a Ray and
ports of its own, no telemetry, no update check and no package installation, and ends with the run.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from fedspk.errors import FedspkError
from fedspk.flower_environment import flower_environment
from simulations.flower_processes import (
    ConfigValue,
    check_run,
    config_text,
    end_processes,
    family_of,
    free_ports,
    processes_named,
)


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
    environment = flower_environment(
        home,
        FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=str(port),
        FLWR_LOCAL_CONTROL_API_PORT=str(control_port),
        RAY_ADDRESS="",
    )
    federation = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": cpus,
        "init-args-log-to-driver": False,
    }
    command = ["flwr", "run", str(app), "local", "--stream"]
    command += ["--federation-config", config_text(federation)]
    if run_config:
        command += ["--run-config", config_text(run_config)]
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
    check_run(run.returncode, log)
    return log


def _end_superlink(port: int) -> None:
    """End the SuperLink of this port and whatever it started."""
    end_processes(family_of(processes_named(["flower-superlink", f"--port {port}"])))
