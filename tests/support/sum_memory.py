"""Prints the most memory that a secure sum takes, in bytes beyond what was there before it.

    python sum_memory.py device LENGTH             a device's quantising and masking
    python sum_memory.py aggregator LENGTH COUNT   a sum over so many devices, one of which fails

The devices of the aggregator's sum share one vector that is there before: what counts is the
aggregator's own, a masked vector on its way included.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from secagg_simulator import Simulation

from fedspk.secagg.quantise import Quantiser


def main(who: str, length: int, count: int = 5) -> None:
    name = "device-001"
    simulation = Simulation(count, size=length, fails={"upload": ["device-000"]})
    simulation.run_to("share")
    simulation.ask("upload")
    if who == "device":
        quantiser: Quantiser = simulation.server.terms.quantiser
        request = simulation.requests["upload"][name]
        update = np.full(length, 1e-6, np.float32)
        before = _begin()
        vector = quantiser.encode(update, 1, [], bytes(32))
        simulation.devices[name].mask(request, vector)
    else:
        vector = np.ones(length, np.uint32)
        before = _begin()
        _upload_one_by_one(simulation, vector)
        for stage in ("sign", "unmask"):
            simulation.run_stage(stage)
        total = simulation.server.finish()
        assert (total == count - 1).all()
    sys.stdout.write(str(_memory("VmHWM") - before))


def _upload_one_by_one(simulation: Simulation, vector: np.ndarray) -> None:
    for name, request in simulation.requests["upload"].items():
        if name not in simulation.fails["upload"]:
            vector[:] = 1  # the update of each of them
            reply = simulation.devices[name].mask(request, vector)
            simulation.server.receive_vector(name, reply, vector.tobytes())
    simulation.failed |= set(simulation.fails["upload"])


def _begin() -> int:
    """Let VmHWM begin again from the memory that is resident now; return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(found.split()[1])


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
