"""The environment in which Flower's own commands are started: quiet, with files in one place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def flower_environment(home: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a Flower command that keeps its files in `home`.

    No telemetry, no update check, no installation of packages, and this Python's commands first.
    """
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **_QUIET, "FLWR_HOME": str(home), "PATH": path, **variables}
