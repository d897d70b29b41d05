from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedspk.errors import FedspkError
from fedspk.secagg.config import PrivacyConfig
from fedspk.secagg.discrete_gaussian import DiscreteGaussian
from fedspk.secagg.privacy import (
    encode_noised,
    honest_shares,
    noise_margin,
    plan_noise,
)
from fedspk.secagg.quantise import Quantiser

_KEY, _ROUNDING = bytes(range(32)), bytes(32)


def _privacy(noise=1.0):
    return PrivacyConfig(noise_multiplier=noise, epsilon=8.0, delta=1e-5)


def _plan(noise=1.0, size=512, clients=10, honest=6, bits=24, norm=2.0):
    return plan_noise(
        _privacy(noise),
        size=size,
        clients=clients,
        honest=honest,
        precision_bits=bits,
        norm=norm,
    )


def _encode(plan, delta, rounding=_ROUNDING, key=_KEY):
    return encode_noised(plan.quantiser, plan.scale, delta, rounding, key)


def _update(size=512, norm=2.0, seed=1):
    delta = np.random.default_rng(seed).normal(size=size)
    return (delta * norm / np.linalg.norm(delta)).astype(np.float32)


def _signed(values):
    return values.view(f"i{values.itemsize}").astype(np.int64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0},
        {"epsilon": -1},
        {"epsilon": math.nan},
        {"delta": 0},
        {"delta": 1},
        {"sigma": 1},
    ],
)
def test_a_senseless_configuration_is_refused(wrong):
    with pytest.raises(ValidationError):
        PrivacyConfig(**{"noise_multiplier": 1, "epsilon": 8, "delta": 1e-5, **wrong})


def test_sensitivity_inflates_as_kairouz_et_al_state():
    # 1,024, 4,096 and 16,384 levels for a million parameters: 1.11, 1.008, 1.0005.
    for bits, inflation in ((11, 1.113), (13, 1.0076), (15, 1.0005)):
        quantiser = _plan(noise=0.1, size=1_000_000, bits=bits).quantiser
        assert quantiser.precision_bits == bits
        assert quantiser.sensitivity / quantiser.levels == pytest.approx(inflation, rel=1e-3)


def test_the_honest_shares_carry_the_whole_noise():
    plan = _plan(noise=1.5, honest=6)
    assert plan.scale * math.sqrt(6) == pytest.approx(1.5 * plan.quantiser.sensitivity)


@pytest.mark.parametrize(
    ("clients", "survivors", "corrupt", "shares"),
    [(25, 17, 0.1, 15), (100, 67, 0.1, 57), (5, 4, 0.0, 4), (9, 7, 0.3, 5)],
)
def test_corrupt_devices_and_failed_ones_give_no_noise(clients, survivors, corrupt, shares):
    assert honest_shares(clients, survivors, corrupt) == shares


def test_a_cohort_without_certain_honest_noise_is_refused():
    with pytest.raises(FedspkError, match="no honest noise"):
        honest_shares(clients=1000, survivors=100, corrupt_fraction=0.1)


@given(
    noise=st.floats(0.05, 100),
    size=st.integers(1, 10**8),
    clients=st.integers(2, 10_000),
    bits=st.integers(8, 24),
)
@settings(max_examples=200, deadline=None)
def test_updates_and_noise_never_wrap_and_take_the_most_bits_there_are(noise, size, clients, bits):
    honest = max(1, clients // 2)
    try:
        plan = _plan(noise, size, clients, honest, bits)
    except FedspkError:
        return
    quantiser = plan.quantiser
    largest = clients * quantiser.levels + noise_margin(plan.scale, clients, size)
    assert largest < 2 ** (quantiser.modulus_bits - 1)
    if quantiser.precision_bits < bits:
        finer = Quantiser(size, 0, 1, quantiser.precision_bits + 1, 32, 2.0, 1)
        scale = noise * finer.sensitivity / math.sqrt(honest)
        assert clients * finer.levels + noise_margin(scale, clients, size) >= 2**31


def test_noise_that_leaves_no_room_for_the_update_is_refused():
    with pytest.raises(FedspkError, match="lower noise_multiplier"):
        _plan(noise=1e6, clients=1000, honest=1)


def test_noise_too_coarse_to_be_private_is_refused():
    with pytest.raises(FedspkError, match="too coarse"):
        _plan(noise=0.05, size=10, clients=1000, honest=600, bits=8)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e300])
def test_the_margin_of_noise_that_cannot_be_drawn_is_refused(scale):
    with pytest.raises(FedspkError, match="scale"):
        noise_margin(scale, 10, 10)


@pytest.mark.parametrize("noise", [1e-2, 3.0])
def test_a_device_sends_its_rounded_update_plus_its_noise(noise):
    plan, delta = _plan(noise), _update()
    draws = DiscreteGaussian(plan.scale, _KEY).draw(512)
    rounded = _signed(_encode(plan, delta)) - draws
    step = 2.0 / plan.quantiser.levels
    assert np.abs(rounded * step - delta).max() <= 1.01 * step + 1e-3 * np.abs(delta).max()
    assert np.linalg.norm(rounded) <= plan.quantiser.sensitivity


@pytest.mark.parametrize("length", [0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("bits", [8, 12])
def test_no_update_exceeds_the_sensitivity_however_coarse_the_steps(length, bits):
    # 8 bits for 20,000 numbers: rounding makes the vector longer, often beyond the bound.
    plan = _plan(size=20_000, bits=bits, honest=1)
    delta = _update(20_000, norm=2.0 * length)
    draws = DiscreteGaussian(plan.scale, _KEY).draw(20_000)
    for attempt in range(20):
        encoded = _encode(plan, delta, bytes([attempt]) * 32)
        rounded = _signed(encoded) - draws
        assert int(rounded @ rounded) <= plan.quantiser.sensitivity**2


def test_the_sum_decodes_to_the_sum_of_updates_with_the_planned_noise():
    plan = _plan(noise=0.5, size=20_000, clients=10, honest=10)
    total = np.zeros(20_000, plan.quantiser.dtype)
    exact = np.zeros(20_000)
    for device in range(10):
        delta = _update(20_000, seed=device)
        exact += delta
        total += _encode(plan, delta, bytes([device]) * 32, bytes([100 + device]) * 32)
    noise = plan.quantiser.decode(total, 10).values - exact
    assert noise.std() == pytest.approx(0.5 * 2.0, rel=0.03)
    assert abs(noise.mean()) < 4 * 0.5 * 2.0 / math.sqrt(20_000)


def test_noise_is_fresh_without_a_key():
    plan, delta = _plan(), _update()
    assert (_encode(plan, delta, key=None) != _encode(plan, delta, key=None)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_refused(bad):
    delta = _update()
    delta[3] = bad
    with pytest.raises(FedspkError, match="finite"):
        _encode(_plan(), delta)


def test_an_update_of_another_length_is_refused():
    with pytest.raises(FedspkError, match="511"):
        _encode(_plan(), _update(511))
