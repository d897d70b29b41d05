"""Secure sums change nothing but who sees what: the same model to the rounding that is stated."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_federation import tiny_config, tiny_fleet, tiny_nodes, tiny_store

from aggregator.federation import run_federation
from fedspk.files import read_json
from fedspk.secagg.quantise import Quantiser
from simulations.executors import SerialExecutor
from simulations.federated.config import load_config
from simulations.federated.experiment import run_experiment
from simulations.grid import LocalGrid

_DEVICES, _CLIPS = 4, 4
_BOUNDS = {"norm": 4.0, "maximum_weight": 4}


def _run(folder, **changes):
    config = tiny_config(**changes)
    paths = tiny_fleet(folder / "fleet", _DEVICES)
    store, initial = tiny_store(folder / "store", config)
    grid = LocalGrid(
        "clients.client_app:app",
        tiny_nodes(paths),
        SerialExecutor(),
        run_config={"store": str(folder / "store")},
    )
    register = folder / "fleet" / "register.json"
    result = run_federation(grid, config, store, folder / "run", initial=initial, register=register)
    return np.array(store.get(result.last_model), np.float64), result


@pytest.mark.parametrize("bits", [24, 12])
def test_a_round_s_model_differs_by_the_rounding_at_most(tmp_path, bits):
    bounds = {**_BOUNDS, "precision_bits": bits}
    secure, summed = _run(tmp_path / "secure", rounds=1, secure=bounds)
    plain, in_clear = _run(tmp_path / "plain", rounds=1, secure=None)
    assert summed.history[1].secure[0].clipped == 0.0
    quantiser = Quantiser.for_cohort(
        size=plain.size,
        counters=5,
        clients=_DEVICES,
        precision_bits=bits,
        norm=bounds["norm"],
        maximum_weight=bounds["maximum_weight"],
    )
    bound = quantiser.rounding_error(_DEVICES) / (_DEVICES * _CLIPS)
    difference = np.abs(secure - plain).max()
    assert 0 < difference <= bound + np.abs(plain).max() * 2**-23  # the model itself is float32
    for seen, told in zip(summed.history, in_clear.history, strict=True):
        assert seen.validation_loss == pytest.approx(told.validation_loss, abs=10 * bound + 1e-6)
    assert summed.history[1].train_loss == pytest.approx(in_clear.history[1].train_loss, abs=1e-6)
    assert summed.history[1].steps == in_clear.history[1].steps


def test_an_experiment_has_the_same_error_rates(tmp_path):
    changes = {
        "corpus": "synthetic:speakers=8,utterances=10,sessions=2",
        "devices": 3,
        "arms": ["federated"],
        "copies": 1,
        "speeds": [1.0],
        "test_sessions": 1,
        "run.encoder_params": {"embedding_dim": 32},
        "run.batch_size": 8,
        "run.crop_frames": 100,
        "federated.rounds": 4,
        "federated.optimiser": "fedavg",
        "federated.server_learning_rate": 1.0,
        "federated.final_server_learning_rate": 1.0,
        "federated.evaluate_every": 2,
        "pretrain.steps": 6,
    }
    rates = {}
    for name, secure in {"secure": True, "plain": False}.items():
        config = load_config("default", None, {**changes, "federated.secure": secure})
        with SerialExecutor() as executor:
            run_experiment(config, tmp_path / name, executor, cache_root=tmp_path / "cache")
        results = read_json(tmp_path / name / "results.json")
        rates[name] = [device["eer"]["federated"] for device in results["devices"]]
        assert (results["secure"]["federated"] is not None) == secure
        page = (tmp_path / name / "report.html").read_text()
        assert ("sums over cohorts" in page) == secure
    assert rates["secure"] == pytest.approx(rates["plain"], abs=1e-9)
