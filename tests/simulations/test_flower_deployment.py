"""The repository's own Flower app on real SuperLink and SuperNode processes, over TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tiny_federation import tiny_config, tiny_fleet, tiny_store

from aggregator.federation import run_federation
from fedspk.files import read_json, write_text
from simulations.executors import SerialExecutor
from simulations.flower_deployment import FlowerDeployment
from simulations.grid import LocalGrid

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 600


def test_plain_rounds_over_tls_give_the_same_bits_as_the_local_grid(tmp_path):
    config = tiny_config(secure=None, evaluate_every=2, update_transport="message")
    nodes = {
        path.stem: {"device": str(path), "plain-updates": True}
        for path in tiny_fleet(tmp_path / "deployed" / "devices", 3)
    }
    with FlowerDeployment(tmp_path / "flower") as deployment:
        stranger = deployment.start_unregistered_node("stranger")
        deployment.start_nodes(nodes)
        assert stranger.wait(timeout=_PATIENCE_SECONDS) != 0
        assert "SuperNode ID:" not in stranger.log()
        log = _deployed(deployment, config, tmp_path / "deployed")
    assert "round 2: 3 of 3 devices trained" in log
    assert not _processes_of(tmp_path)
    deployed = read_json(tmp_path / "deployed" / "checkpoints" / "checkpoint.json")["state"]
    local = _local(config, tmp_path / "local", 3)
    assert deployed["model"] == local.last_model
    assert [record["validation_loss"] for record in deployed["history"]] == [
        record.validation_loss for record in local.history
    ]


def _deployed(deployment, config, folder, watch=None):
    write_text(folder / "config.json", config.to_json())
    run_config = {name: str(folder / name) for name in ("store", "checkpoints")}
    return deployment.run(
        _ROOT,
        {"config": str(folder / "config.json"), **run_config},
        watch=watch,
        timeout=_PATIENCE_SECONDS,
    )


def _local(config, folder, devices):
    nodes = [
        {"device": str(path), "plain-updates": True}
        for path in tiny_fleet(folder / "devices", devices)
    ]
    store, initial = tiny_store(folder / "store", config)
    grid = LocalGrid(
        "clients.client_app:app",
        nodes,
        SerialExecutor(),
        run_config={"store": str(folder / "store")},
    )
    return run_federation(grid, config, store, folder / "run", initial=initial)


def _processes_of(folder):
    command = ["ps", "-axww", "-o", "command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if str(folder) in line]
