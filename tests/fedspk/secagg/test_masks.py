"""Masks: the published keystream, seekable, exact modulo 2^16 and 2^32."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest
from Crypto.Cipher import AES
from hypothesis import given
from hypothesis import strategies as st

from fedspk.secagg.keystream import CHUNK_BYTES, Keystream
from fedspk.secagg.masks import Stream, add_masks

WIDTHS = [np.uint16, np.uint32]
STREAMS = st.lists(
    st.builds(Stream, st.binary(min_size=32, max_size=32), st.booleans()), max_size=4
)


def _drawn(key: bytes, length: int, first_byte: int = 0) -> bytes:
    out = np.empty(length, np.uint8)
    Keystream(key, first_byte).fill(out)
    return out.tobytes()


def _reference(key: bytes, length: int) -> bytes:
    """The same keystream from another library, with the counter from zero."""
    return AES.new(key, AES.MODE_CTR, nonce=b"", initial_value=0).encrypt(bytes(length))


def _masked(
    values: npt.NDArray[np.unsignedinteger], streams: list[Stream]
) -> npt.NDArray[np.unsignedinteger]:
    """The definition, with Python's integers."""
    size, modulus = values.itemsize, 1 << (8 * values.itemsize)
    total = [int(value) for value in values]
    for stream in streams:
        drawn = _reference(stream.key, len(values) * size)
        for index in range(len(values)):
            mask = int.from_bytes(drawn[index * size : (index + 1) * size], "little")
            total[index] += -mask if stream.negative else mask
    return np.array([number % modulus for number in total], values.dtype)


def test_keystream_is_that_of_nist_sp_800_38a() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    plaintext = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    ciphertext = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    drawn = _drawn(key, 64, first_byte=16 * counter)
    assert bytes(a ^ b for a, b in zip(plaintext, drawn, strict=True)) == ciphertext


@given(st.binary(min_size=32, max_size=32), st.integers(0, 100), st.integers(0, 100))
def test_keystream_starts_at_any_byte(key: bytes, first: int, length: int) -> None:
    assert _drawn(key, length, first) == _reference(key, first + length)[first:]


@pytest.mark.parametrize("length", [CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
def test_keystream_goes_on_from_chunk_to_chunk(length: int) -> None:
    assert _drawn(bytes(32), length) == _reference(bytes(32), length)


def test_keystream_goes_on_from_fill_to_fill() -> None:
    stream = Keystream(bytes(32))
    parts = [np.empty(length, np.uint8) for length in (1, 7, 0, 30)]
    for part in parts:
        stream.fill(part)
    assert b"".join(part.tobytes() for part in parts) == _reference(bytes(32), 38)


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_keys_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Keystream(bytes(length))


@pytest.mark.parametrize("width", WIDTHS)
@given(streams=STREAMS, length=st.integers(0, 40))
def test_masks_are_little_endian_integers_of_the_keystream(
    width: type[np.unsignedinteger], streams: list[Stream], length: int
) -> None:
    values = np.arange(length, dtype=width)
    expected = _masked(values, streams)
    add_masks(values, streams)
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("width", WIDTHS)
@given(st.data())
def test_parts_done_apart_make_the_whole(
    width: type[np.unsignedinteger], data: st.DataObject
) -> None:
    streams = data.draw(STREAMS)
    length = data.draw(st.integers(0, 100))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=4)))
    whole, parts = np.zeros(length, width), np.zeros(length, width)
    add_masks(whole, streams)
    for start, stop in reversed(list(zip([0, *cuts], [*cuts, length], strict=True))):
        add_masks(parts[start:stop], streams, first=start)
    assert np.array_equal(parts, whole)


@pytest.mark.parametrize("width", WIDTHS)
def test_long_vectors_are_masked_across_chunks(width: type[np.unsignedinteger]) -> None:
    length = 2 * CHUNK_BYTES // np.dtype(width).itemsize + 77
    streams = [Stream(bytes([index]) * 32, index % 2 == 1) for index in range(3)]
    values = np.zeros(length, width)
    add_masks(values, streams, first=5)
    expected = np.zeros(length, width)
    for stream in streams:
        drawn = np.frombuffer(_reference(stream.key, values.nbytes + 5 * values.itemsize), width)
        expected += -drawn[5:] if stream.negative else drawn[5:]
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("width", WIDTHS)
@given(streams=STREAMS, order=st.randoms())
def test_masks_taken_away_in_any_order_leave_the_vector(
    width: type[np.unsignedinteger], streams: list[Stream], order: random.Random
) -> None:
    values = np.arange(50, dtype=width)
    add_masks(values, streams)
    opposite = [Stream(stream.key, not stream.negative) for stream in streams]
    order.shuffle(opposite)
    add_masks(values, opposite)
    assert np.array_equal(values, np.arange(50, dtype=width))
