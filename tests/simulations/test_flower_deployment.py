"""The repository's own Flower app on real SuperLink and SuperNode processes, over TLS."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tiny_federation import tiny_config, tiny_fleet, tiny_store

from aggregator.bundles import BundleServer, sign_bundle
from aggregator.federation import run_federation
from fedspk.errors import FedspkError
from fedspk.files import read_json, write_text
from fedspk.flower_environment import flower_environment
from fedspk.secagg.quantise import Quantiser
from simulations.deployment_keys import write_key_pair
from simulations.executors import SerialExecutor
from simulations.flower_deployment import FlowerDeployment
from simulations.flower_processes import (
    family_of,
    processes_named,
    send_signal,
)
from simulations.grid import LocalGrid

_ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 600
_POLICY = {"minimum-cohort": 4}


class _KilledError(Exception):
    """A process was killed: nobody waits for what it did."""


@pytest.mark.slow
def test_plain_rounds_over_tls_give_the_same_bits_as_the_local_grid(tmp_path):
    config = tiny_config(secure=None, evaluate_every=2, update_transport="message")
    with FlowerDeployment(tmp_path / "flower") as deployment:
        stranger = deployment.start_unregistered_node("stranger")
        deployment.start_nodes(_where_one_is_discreet(tmp_path / "deployed"))
        assert stranger.wait(_PATIENCE_SECONDS) != 0
        assert "SuperNode ID:" not in stranger.log()
        log = _deployed(deployment, _ROOT, config, tmp_path / "deployed")
    assert "round 2: 2 of 3 devices trained" in log
    assert not _processes_of(tmp_path)
    state = _state(tmp_path / "deployed")
    assert any("device-0002: the device failed" in text for text in state["history"][2]["failures"])
    local, _ = _local(config, tmp_path / "local", _where_one_is_discreet(tmp_path / "local"))
    assert state["model"] == local.last_model
    assert [record["validation_loss"] for record in state["history"]] == [
        record.validation_loss for record in local.history
    ]


@pytest.mark.slow
def test_secure_rounds_over_tls_outlive_a_node_that_is_killed_in_the_middle_of_one(tmp_path):
    config = tiny_config(rounds=3, evaluate_every=0, update_transport="message")
    with (
        _signed_app(tmp_path / "hub") as (hub, app, trusted),
        FlowerDeployment(tmp_path / "flower", hub=hub, trusted_entities=trusted) as deployment,
    ):
        nodes = deployment.start_nodes(_nodes(tmp_path / "deployed", 5, _POLICY))
        with pytest.raises(FedspkError, match="The FAB could not be verified"):
            _deployed(deployment, _ROOT, config, tmp_path / "unsigned")

        def kill_when_it_is_to_train_again():
            if nodes[1].log().count("Receiving: train.masked message") == 2:
                nodes[1].kill()

        log = _deployed(
            deployment, app, config, tmp_path / "deployed", kill_when_it_is_to_train_again
        )
    assert "round 1: 5 of 5 devices trained" in log
    assert "round 2: 4 of 5 devices trained" in log
    assert "round 3: 4 of 4 devices trained" in log
    assert not _processes_of(tmp_path)
    local, _ = _local(config, tmp_path / "local", _where_one_dies(tmp_path / "local", 2))
    assert _state(tmp_path / "deployed")["model"] == local.last_model


@pytest.mark.slow
def test_nodes_may_be_killed_at_any_step_of_a_secure_sum(tmp_path):
    config = tiny_config(rounds=3, evaluate_every=0, update_transport="message")
    victims = {1: "share", 2: "survivors", 3: "unmask"}  # number of the node and of the round
    with FlowerDeployment(tmp_path / "flower") as deployment:
        nodes = deployment.start_nodes(_nodes(tmp_path / "deployed", 7, _POLICY))
        alive = dict(victims)

        def kill_at_the_step():
            for number, step in list(alive.items()):
                if nodes[number].log().count(f"Receiving: query.{step} message") == number:
                    nodes[number].kill()
                    del alive[number]

        log = _deployed(deployment, _ROOT, config, tmp_path / "deployed", kill_at_the_step)
    assert "round 1: 6 of 7 devices trained" in log
    assert re.search("round 2: 6 of [67] devices trained", log)  # the first may not be missed yet
    assert re.search("round 3: 5 of [567] devices trained", log)
    assert not _processes_of(tmp_path)
    local, _ = _local(config, tmp_path / "local", _where_some_die(tmp_path / "local", victims))
    assert _state(tmp_path / "deployed")["model"] == local.last_model


@pytest.mark.slow
def test_an_aggregator_killed_in_the_middle_of_a_sum_goes_on_to_the_same_bits(tmp_path):
    config = tiny_config(rounds=3, evaluate_every=0, update_transport="message")
    configs = _nodes(tmp_path / "deployed", 5, _POLICY)
    with ExitStack() as deployments:
        deployment = deployments.enter_context(FlowerDeployment(tmp_path / "flower"))
        nodes = deployment.start_nodes(configs)

        def run_and_kill(process, vectors):
            def kill_when_vectors_have_come():
                if nodes[1].log().count("Receiving: train.masked message") == vectors:
                    _kill_with_children(process, tmp_path / "flower")
                    raise _KilledError

            watch = kill_when_vectors_have_come
            with pytest.raises(_KilledError):
                _deployed(deployment, _ROOT, config, tmp_path / "deployed", watch)

        run_and_kill("flwr-serverapp", 2)
        assert _state(tmp_path / "deployed")["round"] == 1
        run_and_kill("flower-superlink", 4)  # round 2 again, and round 3
        assert _state(tmp_path / "deployed")["round"] == 2
        deployment.close()  # nobody reads its database again
        deployment = deployments.enter_context(FlowerDeployment(tmp_path / "again"))
        deployment.start_nodes(configs)
        log = _deployed(deployment, _ROOT, config, tmp_path / "deployed")
    assert "round 2:" not in log
    assert "round 3: 5 of 5 devices trained" in log
    assert not _processes_of(tmp_path)
    undisturbed, _ = _local(config, tmp_path / "local", _nodes(tmp_path / "local", 5, _POLICY))
    assert _state(tmp_path / "deployed")["model"] == undisturbed.last_model


def test_a_sum_that_a_device_left_is_the_weighted_mean_of_the_others(tmp_path):
    """What the deployment above is compared with, compared with rounds in clear."""
    config = tiny_config(rounds=1, evaluate_every=0)
    assert config.secure is not None
    models = []
    for each in (config, config.changed(secure=None)):
        folder = tmp_path / str(len(models))
        result, store = _local(each, folder, _where_one_dies(folder, 1))
        assert (result.history[1].answered, result.history[1].asked) == (4, 5)
        models.append(store.get(result.last_model))
    secure, plain = models
    quantiser = Quantiser.for_cohort(
        size=plain.size,
        counters=5,
        clients=5,
        precision_bits=config.secure.precision_bits,
        norm=config.secure.norm,
        maximum_weight=config.secure.maximum_weight,
    )
    weights = 4 * 4  # survivors with four utterances each
    bound = quantiser.rounding_error(4) / weights
    assert 0 < np.abs(secure - plain).max() < bound + np.spacing(np.abs(plain).max())


def _where_one_is_discreet(folder):
    """Return nodes of which one sends no update in clear."""
    nodes = _nodes(folder, 3, {"plain-updates": True})
    del nodes["device-0002"]["plain-updates"]
    return nodes


def _where_one_dies(folder, number):
    nodes = _nodes(folder, 5, {**_POLICY, "plain-updates": True})
    nodes["device-0001"]["dies-in-round"] = number
    return nodes


def _where_some_die(folder, victims):
    nodes = _nodes(folder, 7, _POLICY)
    for number, step in victims.items():
        nodes[f"device-{number:04}"] |= {"dies-in-round": number, "dies-at": f"query.{step}"}
    return nodes


def _kill_with_children(process, folder):
    """End a process of the aggregator's side at once, as a power cut does."""
    superlink = family_of(processes_named(["flower-superlink", str(folder)]))
    for each in family_of(processes_named([process]) & superlink):
        send_signal(each, signal.SIGKILL)


def _nodes(folder, count, config):
    return {
        path.stem: {
            "device": str(path),
            "identity": str(path.with_suffix("") / "identity.json"),
            "register": str(path.with_name("register.json")),
            **config,
        }
        for path in tiny_fleet(folder / "devices", count)
    }


def _deployed(deployment, app, config, folder, watch=None):
    write_text(folder / "config.json", config.to_json())
    run_config = {name: str(folder / name) for name in ("store", "checkpoints")}
    run_config["config"] = str(folder / "config.json")
    run_config["register"] = str(folder / "devices" / "register.json")
    return deployment.run(app, run_config, watch=watch, timeout=_PATIENCE_SECONDS)


def _state(folder):
    return read_json(folder / "checkpoints" / "checkpoint.json")["state"]


def _local(config, folder, nodes):
    store, initial = tiny_store(folder / "store", config)
    grid = LocalGrid(
        "mortal_client:app",
        list(nodes.values()),
        SerialExecutor(),
        run_config={"store": str(folder / "store")},
    )
    register = folder / "devices" / "register.json"
    result = run_federation(grid, config, store, folder / "run", initial=initial, register=register)
    return result, store


@contextmanager
def _signed_app(folder):
    """Yield a hub with this repository's app, the app's name there, and who is trusted with it."""
    folder.mkdir()
    subprocess.run(
        ["flwr", "build", "--app", str(_ROOT)],
        env=flower_environment(folder / "home"),
        cwd=folder,
        capture_output=True,
        check=True,
    )
    public = write_key_pair(folder / "release", Ed25519PrivateKey.generate())
    (folder / "trusted.yaml").write_text(f"fpk_release: {public.read_text()}")
    (bundle,) = folder.glob("*.fab")
    sign_bundle(bundle, folder / "release", "fpk_release")
    publisher, name, version, *_ = bundle.name.split(".")
    with BundleServer(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            app = f"@{publisher}/{name}=={version.replace('-', '.')}"
            yield server.address, app, folder / "trusted.yaml"
        finally:
            server.shutdown()
            thread.join()


def _processes_of(folder):
    command = ["ps", "-axww", "-o", "command="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if str(folder) in line]
