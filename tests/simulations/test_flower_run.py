"""The repository's own Flower app under `flwr run .`, on Flower's own simulation engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tiny_federation import tiny_config, tiny_fleet, tiny_nodes, tiny_store

from aggregator.federation import run_federation
from fedspk.errors import FedspkError
from fedspk.files import read_json, write_text
from simulations.executors import SerialExecutor
from simulations.flower_run import flower_run
from simulations.grid import LocalGrid

_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_flwr_run_gives_the_same_bits_as_the_local_grid_and_leaves_no_daemon(tmp_path):
    config = tiny_config(clients_per_round=2, rounds=2)
    folders = {
        name: str(tmp_path / "flower" / name) for name in ("devices", "store", "checkpoints")
    }
    tiny_fleet(tmp_path / "flower" / "devices", 3)
    write_text(tmp_path / "config.json", config.to_json())
    log = flower_run(
        _ROOT,
        nodes=3,
        cpus=2,
        home=tmp_path / "home",
        run_config={"config": str(tmp_path / "config.json"), "rounds": 1, **folders},
        timeout=240,
    )
    assert "round 1, secure sum of updates, train: 3 of 3" in log
    assert "round 1: 3 of 3 devices trained" in log
    assert not _superlinks(tmp_path)
    on_flower = read_json(tmp_path / "flower" / "checkpoints" / "checkpoint.json")["state"]

    devices = tiny_fleet(tmp_path / "local" / "devices", 3)
    store, initial = tiny_store(tmp_path / "local" / "store", config)
    grid = LocalGrid(
        "clients.client_app:app",
        tiny_nodes(devices),
        SerialExecutor(),
        run_config={"store": str(tmp_path / "local" / "store")},
    )
    local = run_federation(
        grid,
        config.changed(rounds=1),
        store,
        tmp_path / "local" / "run",
        initial=initial,
        register=tmp_path / "local" / "devices" / "register.json",
    )
    assert on_flower["model"] == local.last_model
    assert [r["validation_loss"] for r in on_flower["history"]] == [
        record.validation_loss for record in local.history
    ]


@pytest.mark.slow
def test_a_failing_server_app_is_one_error_with_its_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"rounds": -1}')
    with pytest.raises(FedspkError, match="The run configuration is wrong: rounds"):
        flower_run(
            _ROOT,
            nodes=2,
            cpus=1,
            home=tmp_path / "home",
            run_config={"config": str(tmp_path / "config.json")},
            timeout=120,
        )
    assert not _superlinks(tmp_path)


@pytest.mark.slow
def test_a_failing_command_is_one_error_and_leaves_no_daemon(tmp_path):
    with pytest.raises(FedspkError, match="flwr run failed"):
        flower_run(tmp_path, nodes=1, cpus=1, home=tmp_path / "home", timeout=120)
    assert not _superlinks(tmp_path)


def _superlinks(home: Path) -> list[str]:
    command = ["ps", "-axww", "-o", "command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if str(home) in line and "flower" in line]
