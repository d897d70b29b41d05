from __future__ import annotations

import numpy as np
import pytest

from aggregator.optimisers import FedAdam, FedAvg, FedAvgM, build_optimiser
from fedspk.rounds import RunConfig

_MODEL = np.array([1.0, -2.0, 0.5], np.float32)
_DELTA = np.array([0.1, 0.2, -0.3])


def test_fedavg_moves_by_eta_times_the_mean_delta():
    moved = FedAvg(0.5).step(_MODEL, _DELTA)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, _MODEL + 0.5 * _DELTA, rtol=1e-6)


def test_fedavgm_accumulates_velocity():
    optimiser = FedAvgM(1.0, momentum=0.9)
    once = optimiser.step(_MODEL, _DELTA)
    twice = optimiser.step(once, _DELTA)
    np.testing.assert_allclose(once - _MODEL, _DELTA, rtol=1e-5)
    np.testing.assert_allclose(twice - once, 1.9 * _DELTA, rtol=1e-5)


def test_fedadam_follows_reddi_s_algorithm_2():
    optimiser = FedAdam(0.1, beta1=0.9, beta2=0.99, tau=1e-3)
    model, first, second = _MODEL.astype(np.float64), np.zeros(3), np.full(3, 1e-6)
    moved = _MODEL
    for _ in range(3):
        first = 0.9 * first + 0.1 * _DELTA
        second = 0.99 * second + 0.01 * _DELTA**2
        model = model + 0.1 * first / (np.sqrt(second) + 1e-3)
        moved = optimiser.step(moved, _DELTA)
    np.testing.assert_allclose(moved, model, rtol=1e-5)


def test_arguments_are_left_alone():
    model, delta = _MODEL.copy(), _DELTA.copy()
    for optimiser in (FedAvg(1.0), FedAvgM(1.0), FedAdam(1.0)):
        optimiser.step(model, delta)
    np.testing.assert_array_equal(model, _MODEL)
    np.testing.assert_array_equal(delta, _DELTA)


@pytest.mark.parametrize(
    ("name", "kind"), [("fedavg", FedAvg), ("fedavgm", FedAvgM), ("fedadam", FedAdam)]
)
def test_the_run_chooses_the_optimiser(name, kind):
    optimiser = build_optimiser(RunConfig().changed(optimiser=name, server_learning_rate=0.3))
    assert type(optimiser) is kind
    assert optimiser.eta == 0.3
