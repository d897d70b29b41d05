"""Fixed point: sums within the stated error, never wrapped, unbiased; counters exact."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspk.errors import FedspkError
from fedspk.secagg.quantise import Quantiser, clip_scale

FloatVector = npt.NDArray[np.float32]
KEY = bytes(range(32))
VALID: dict[str, Any] = {
    "size": 4,
    "counters": 1,
    "clients": 25,
    "precision_bits": 16,
    "norm": 1.0,
    "maximum_weight": 8,
}


def _quantiser(**changes: Any) -> Quantiser:
    return Quantiser.for_cohort(**(VALID | changes))


def _vector(*numbers: float) -> FloatVector:
    return np.array(numbers, np.float32)


def _key(index: int) -> bytes:
    return hashlib.sha256(str(index).encode()).digest()


def _exact(quantiser: Quantiser, delta: FloatVector, weight: int) -> npt.NDArray[np.float64]:
    """What a device should contribute, in float64."""
    exact = delta.astype(np.float64)
    length = float(np.linalg.norm(exact))
    weight = min(weight, quantiser.maximum_weight)
    return exact * weight * min(1.0, quantiser.norm / length if length else 1.0)


@pytest.mark.parametrize(
    ("clients", "precision_bits", "expected"),
    [
        (25, 10, (16, 10)),
        (25, 11, (16, 11)),
        (25, 12, (32, 12)),
        (25, 24, (32, 24)),
        (1, 16, (16, 16)),
        (2, 15, (16, 15)),
        (256, 24, (32, 24)),
        (257, 24, (32, 23)),
        (4096, 20, (32, 20)),
        (4097, 20, (32, 19)),
        (10_000, 24, (32, 18)),
    ],
)
def test_modulus_and_bits_follow_from_the_cohort(
    clients: int, precision_bits: int, expected: tuple[int, int]
) -> None:
    quantiser = _quantiser(clients=clients, precision_bits=precision_bits)
    assert (quantiser.modulus_bits, quantiser.precision_bits) == expected
    assert quantiser.dtype.itemsize * 8 == quantiser.modulus_bits


def test_noise_takes_its_room_from_the_bits() -> None:
    assert _quantiser(clients=4, precision_bits=14).modulus_bits == 16
    assert _quantiser(clients=4, precision_bits=14, noise_margin=4).modulus_bits == 32
    assert _quantiser(clients=4, precision_bits=24, noise_margin=2**31 - 2**12).precision_bits == 11


@given(st.integers(1, 2**23), st.integers(8, 24), st.integers(0, 2**24))
def test_no_accepted_quantiser_can_wrap(clients: int, bits: int, noise: int) -> None:
    quantiser = _quantiser(clients=clients, precision_bits=bits, noise_margin=noise)
    largest = clients * (2 ** (quantiser.precision_bits - 1) - 1) + noise
    assert largest <= 2 ** (quantiser.modulus_bits - 1) - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": 2**24 + 2**18},
        {"noise_margin": 2**31},
        {"clients": 0},
        {"size": -1},
        {"counters": -1},
        {"noise_margin": -1},
        {"precision_bits": 7},
        {"precision_bits": 25},
        {"norm": 0.0},
        {"norm": -1.0},
        {"norm": 1e-10},
        {"norm": 1e10},
        {"norm": math.inf},
        {"norm": math.nan},
        {"maximum_weight": 0},
        {"maximum_weight": 2**33},
    ],
    ids=str,
)
def test_impossible_cohorts_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FedspkError):
        _quantiser(**changes)


@pytest.mark.parametrize(
    ("bits", "modulus", "clients"), [(16, 16, 2), (24, 32, 257), (8, 24, 2), (8, 64, 2)]
)
def test_stated_parameters_that_could_wrap_are_refused(
    bits: int, modulus: int, clients: int
) -> None:
    with pytest.raises(FedspkError):
        Quantiser(**(VALID | {"clients": clients, "precision_bits": bits}), modulus_bits=modulus)


@settings(max_examples=150)
@given(st.data())
def test_sum_is_the_weighted_sum_within_the_stated_error(data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, 8))
    quantiser = _quantiser(
        clients=clients,
        size=data.draw(st.integers(0, 20)),
        counters=data.draw(st.integers(0, 3)),
        precision_bits=data.draw(st.integers(8, 24)),
        norm=data.draw(st.floats(1e-3, 1e3)),
        maximum_weight=data.draw(st.integers(1, 1000)),
    )
    numbers = st.floats(-1e3, 1e3, width=32)
    exact, total = np.zeros(quantiser.size), np.zeros(quantiser.length, quantiser.dtype)
    counters = [0] * quantiser.counters
    for client in range(clients):
        delta = _vector(
            *data.draw(st.lists(numbers, min_size=quantiser.size, max_size=quantiser.size))
        )
        weight = data.draw(st.integers(1, 2000))
        counts = [data.draw(st.integers(0, 2**32 - 1)) for _ in counters]
        encoded = quantiser.encode(delta, weight, counts, _key(client))
        assert encoded.dtype == quantiser.dtype
        total += encoded
        exact += _exact(quantiser, delta, weight)
        counters = [sum(pair) for pair in zip(counters, counts, strict=True)]
    decoded = quantiser.decode(total, clients)
    assert decoded.counters == tuple(counters)
    assert np.all(np.abs(decoded.values - exact) <= quantiser.rounding_error(clients))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("clients", "bits"), [(25, 11), (2, 15), (128, 24), (256, 24), (1000, 22), (1, 16)]
)
def test_sum_of_extremes_does_not_wrap(sign: int, clients: int, bits: int) -> None:
    quantiser = _quantiser(size=1, clients=clients, precision_bits=bits)
    assert quantiser.precision_bits == bits
    encoded = quantiser.encode(_vector(sign * 7e5), 99, [2**32 - 1], KEY)
    total = reduce(add, [encoded] * clients)
    decoded = quantiser.decode(total, clients)
    assert decoded.counters == (clients * (2**32 - 1),)
    exact = sign * clients * quantiser.maximum_weight * quantiser.norm
    assert abs(decoded.values[0] - exact) <= quantiser.rounding_error(clients)


@pytest.mark.parametrize("norm", [1e-9, 1e9])
@pytest.mark.parametrize("maximum_weight", [1, 2**32])
def test_extreme_norms_and_weights_keep_the_error(norm: float, maximum_weight: int) -> None:
    quantiser = _quantiser(clients=2, norm=norm, maximum_weight=maximum_weight)
    for delta in (_vector(norm, 1e18, 1e-38, 0), _vector(0, 0, norm, 1e-30), _vector(0, 0, 0, 0)):
        for weight in (1, maximum_weight):
            decoded = quantiser.decode(quantiser.encode(delta, weight, [0], KEY), 1)
            exact = _exact(quantiser, delta, weight)
            assert np.all(np.abs(decoded.values - exact) <= quantiser.rounding_error(1))


@given(st.floats(0.5, 2.0, width=32), st.integers(1, 40), st.binary(min_size=32, max_size=32))
def test_no_coordinate_passes_the_largest_level(scale: float, size: int, key: bytes) -> None:
    for bits in (8, 16, 24):
        quantiser = _quantiser(size=size, clients=1, counters=0, precision_bits=bits)
        delta = np.zeros(size, np.float32)
        delta[-1] = scale
        signed = quantiser.encode(delta, 8, [], key).view(f"i{quantiser.dtype.itemsize}")
        assert np.max(np.abs(signed)) <= quantiser.levels


@pytest.mark.parametrize("value", [1e-9, 3e-5, 0.3, 1 / 3, 0.49999, 0.75, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [8, 24])
def test_rounding_is_unbiased(value: float, sign: int, bits: int) -> None:
    # Many coordinates of one value: their mean is the value. The update is not clipped.
    size = 200_000
    norm = 1000.0
    quantiser = _quantiser(
        size=size, counters=0, clients=2, precision_bits=bits, norm=norm, maximum_weight=1
    )
    delta = np.full(size, sign * value, np.float32)
    levels = quantiser.decode(quantiser.encode(delta, 1, [], KEY), 1).values
    step = quantiser.rounding_error(1) / (1 + quantiser.levels * 2**-23)
    # A rounded number deviates by half a step at most: five standard deviations of the mean.
    error = 5 * step / 2 / math.sqrt(size) + abs(value) * 2**-23
    assert abs(levels.mean() - float(delta[0])) <= error
    assert np.ptp(levels) <= step * 1.000001


def test_whole_levels_are_not_rounded() -> None:
    quantiser = _quantiser(size=3, counters=0, clients=1, maximum_weight=1)
    step = quantiser.rounding_error(1) / (1 + quantiser.levels * 2**-23)
    for key in map(_key, range(50)):
        encoded = quantiser.encode(_vector(0.0, 3 * step, -7 * step), 1, [], key)
        assert encoded.view(np.int16).tolist() == [0, 3, -7]


def test_updates_within_the_norm_are_not_clipped_and_others_are() -> None:
    assert clip_scale(_vector(3.0, 4.0), 5.0) == 1.0
    assert clip_scale(_vector(3.0, 4.0), 2.5) == pytest.approx(0.5, rel=1e-6)
    assert clip_scale(_vector(0.0, -0.0), 1.0) == 1.0
    assert clip_scale(_vector(), 1.0) == 1.0


def test_clipped_update_has_the_stated_norm() -> None:
    delta = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    quantiser = _quantiser(size=delta.size, clients=25, precision_bits=24, maximum_weight=1)
    decoded = quantiser.decode(quantiser.encode(delta, 1, [0], KEY), 1)
    assert np.linalg.norm(decoded.values) == pytest.approx(1.0, rel=1e-5)
    exact = _exact(quantiser, delta, 1)
    assert np.max(np.abs(decoded.values - exact)) <= quantiser.rounding_error(1)


def test_long_updates_are_encoded_across_chunks() -> None:
    delta = np.random.default_rng(2).uniform(-1, 1, 100_001).astype(np.float32)
    quantiser = _quantiser(size=delta.size, clients=3, precision_bits=20, norm=1000.0)
    total = reduce(add, (quantiser.encode(delta, 5, [7], _key(index)) for index in range(3)))
    decoded = quantiser.decode(total, 3)
    assert decoded.counters == (21,)
    assert np.max(np.abs(decoded.values - 15.0 * delta)) <= quantiser.rounding_error(3)


def test_weights_beyond_the_largest_count_as_the_largest() -> None:
    quantiser, delta = _quantiser(), _vector(0.1, -0.2, 0.3, 0.0)
    assert np.array_equal(
        quantiser.encode(delta, 8, [1], KEY), quantiser.encode(delta, 10**30, [1], KEY)
    )


def test_one_rounding_key_gives_one_vector_and_the_update_is_untouched() -> None:
    quantiser = _quantiser(size=1000, precision_bits=8)
    delta = np.full(1000, 0.01, np.float32)
    delta.setflags(write=False)
    encoded = quantiser.encode(delta, 8, [1], KEY)
    assert np.array_equal(encoded, quantiser.encode(delta, 8, [1], KEY))
    assert not np.array_equal(encoded, quantiser.encode(delta, 8, [1], _key(0)))


def test_counters_alone_are_a_vector() -> None:
    quantiser = _quantiser(size=0, counters=3, precision_bits=8)
    encoded = quantiser.encode(_vector(), 1, [1, 2**32 - 1, 12345], KEY)
    decoded = quantiser.decode(encoded, 1)
    assert decoded.values.shape == (0,)
    assert decoded.counters == (1, 2**32 - 1, 12345)


@pytest.mark.parametrize(
    ("delta", "weight", "counters"),
    [
        ([1.0, 2.0, 3.0], 1, [0]),
        ([1.0, 2.0, 3.0, math.nan], 1, [0]),
        ([1.0, 2.0, 3.0, math.inf], 1, [0]),
        ([1.0, 2.0, 3.0, -math.inf], 1, [0]),
        ([math.inf, -math.inf, 3.0, 1.0], 1, [0]),
        ([1.0, 2.0, 3.0, 1e30], 1, [0]),
        ([1.0, 2.0, 3.0, 4.0], 0, [0]),
        ([1.0, 2.0, 3.0, 4.0], -1, [0]),
        ([1.0, 2.0, 3.0, 4.0], 1, []),
        ([1.0, 2.0, 3.0, 4.0], 1, [0, 0]),
        ([1.0, 2.0, 3.0, 4.0], 1, [-1]),
        ([1.0, 2.0, 3.0, 4.0], 1, [2**32]),
    ],
    ids=str,
)
def test_updates_that_cannot_be_sent_are_refused(
    delta: list[float], weight: int, counters: list[int]
) -> None:
    with pytest.raises(FedspkError):
        _quantiser().encode(_vector(*delta), weight, counters, KEY)


def test_sums_of_another_shape_are_refused() -> None:
    quantiser = _quantiser()
    for total in (np.zeros(quantiser.length, np.uint16), np.zeros(quantiser.length + 1, np.uint32)):
        with pytest.raises(FedspkError, match="expected"):
            quantiser.decode(total, 1)
    for survivors in (0, 26):
        with pytest.raises(FedspkError, match="devices"):
            quantiser.decode(np.zeros(quantiser.length, quantiser.dtype), survivors)


@pytest.mark.parametrize("place", range(7))
def test_sums_that_no_devices_can_have_sent_are_refused(place: int) -> None:
    quantiser = _quantiser(precision_bits=12, noise_margin=100)
    assert quantiser.length == 4 + 3
    total = np.zeros(quantiser.length, quantiser.dtype)
    largest = 5 * quantiser.levels + (100 if place < 4 else 0)
    total[place] = largest
    quantiser.decode(total, 5)
    total[place] = largest + 1
    with pytest.raises(FedspkError, match="out of range"):
        quantiser.decode(total, 5)
    total[place] = 2**32 - largest
    if place < 4:
        quantiser.decode(total, 5)
    total[place] -= 1
    with pytest.raises(FedspkError, match="out of range"):
        quantiser.decode(total, 5)


@given(st.binary(max_size=40), st.integers(-3, 30))
def test_arbitrary_sums_decode_or_are_refused(data: bytes, survivors: int) -> None:
    quantiser = _quantiser(precision_bits=11)
    total = np.frombuffer(data[: len(data) // 2 * 2], np.uint16).copy()
    try:
        decoded = quantiser.decode(total, survivors)
    except FedspkError:
        return
    largest = survivors * VALID["norm"] * VALID["maximum_weight"] * 1.001
    assert np.all(np.abs(decoded.values) <= largest)


@settings(max_examples=50)
@given(st.integers(1, 300), st.floats(0.0, 2.0), st.integers(8, 20), st.integers(0, 2**32))
def test_noised_updates_stay_within_the_sensitivity(
    size: int, length: float, bits: int, seed: int
) -> None:
    quantiser = _quantiser(size=size, counters=0, precision_bits=bits)
    delta = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    delta *= np.float32(length / np.linalg.norm(delta))
    encoded = quantiser.encode_noised(delta, _key(seed), np.zeros(size, np.int64))
    signed = encoded.view(f"i{encoded.itemsize}").astype(np.float64)
    assert np.linalg.norm(signed) <= quantiser.sensitivity
    assert quantiser.levels <= quantiser.sensitivity <= quantiser.levels + math.sqrt(size)


def test_noise_is_added_to_the_rounded_update() -> None:
    quantiser = _quantiser(size=5, counters=0, noise_margin=1000)
    delta, noise = _vector(0.1, -0.2, 0.3, -0.4, 0.0), np.array([1000, -1000, 7, 0, -1])
    plain = quantiser.encode_noised(delta, KEY, np.zeros(5, np.int64)).view(np.int32)
    noised = quantiser.encode_noised(delta, KEY, noise).view(np.int32)
    assert (noised - plain).tolist() == noise.tolist()


def test_noise_that_does_not_fit_is_refused() -> None:
    quantiser = _quantiser(size=2, counters=0, noise_margin=10)
    for noise in ([11, 0], [0, -11], [0], [0, 0, 0]):
        with pytest.raises(FedspkError, match="noise"):
            quantiser.encode_noised(_vector(0.1, 0.2), KEY, np.array(noise, np.int64))
    with pytest.raises(FedspkError, match="counters"):
        _quantiser(size=2).encode_noised(_vector(0.1, 0.2), KEY, np.zeros(2, np.int64))


def test_encoding_needs_one_more_vector_and_no_other() -> None:
    size = 4_000_000
    quantiser = _quantiser(size=size, precision_bits=24)
    delta = np.ones(size, np.float32)
    tracemalloc.start()
    try:
        quantiser.encode(delta, 8, [1], KEY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * size + 2**20
