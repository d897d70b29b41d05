"""Secret sharing: any threshold of shares recovers, fewer fit every secret."""

from __future__ import annotations

import contextlib
import math
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspk.secagg.errors import MessageError
from fedspk.secagg.shamir import (
    MAXIMUM_SHARES,
    PRIME,
    SHARE_BYTES,
    check_shares,
    combine,
    combine_many,
    find_wrong,
    split,
)

SECRETS = st.binary(min_size=32, max_size=32)


def _limbs(secret: bytes) -> list[int]:
    return list(struct.unpack(">16H", secret))


def _share(values: list[int]) -> bytes:
    """The documented format, written independently."""
    bits = "".join(str(int(value == 65536)) for value in values)
    return struct.pack(">17H", *(value % 65536 for value in values), int(bits, 2))


def _values(share: bytes) -> list[int]:
    *limbs, bits = struct.unpack(">17H", share)
    return [limb + 65536 * (bits >> (15 - index) & 1) for index, limb in enumerate(limbs)]


def _interpolated(points: dict[int, int], at: int) -> int:
    """Lagrange's formula with Python's integers."""
    total = 0
    for x, y in points.items():
        others = points.keys() - {x}
        numerator = math.prod(at - other for other in others)
        total += y * numerator * pow(math.prod(x - other for other in others), -1, PRIME)
    return total % PRIME


@st.composite
def _sizes(draw: st.DrawFn, most: int = 30) -> tuple[int, int]:
    shares = draw(st.integers(1, most))
    return shares, draw(st.integers(1, shares))


@given(st.lists(SECRETS, min_size=1, max_size=3), _sizes(), st.data())
def test_any_threshold_of_shares_recovers_the_secret(
    secrets: list[bytes], sizes: tuple[int, int], data: st.DataObject
) -> None:
    shares, threshold = sizes
    rows = split(secrets, shares, threshold)
    for secret, row in zip(secrets, rows, strict=True):
        assert [len(share) for share in row] == [SHARE_BYTES] * shares
        order = data.draw(st.permutations(range(shares)))
        held = {holder: row[holder] for holder in order[: max(threshold, len(order) // 2)]}
        assert combine(held, threshold) == secret


@given(SECRETS, SECRETS, st.integers(2, 12))
def test_fewer_shares_fit_every_other_secret(secret: bytes, other: bytes, threshold: int) -> None:
    # With one more share, suitably chosen, threshold - 1 true shares recover any secret at all.
    [row] = split([secret], threshold, threshold)
    known = [_values(share) for share in row[:-1]]
    missing = []
    for limb, value in enumerate(_limbs(other)):
        points = {holder + 1: known[holder][limb] for holder in range(threshold - 1)}
        missing.append(_interpolated({0: value} | points, at=threshold))
    held = dict(enumerate(row[:-1])) | {threshold - 1: _share(missing)}
    assert combine(held, threshold) == other


@given(SECRETS, _sizes(12))
def test_shares_lie_on_one_polynomial_of_the_stated_degree(
    secret: bytes, sizes: tuple[int, int]
) -> None:
    shares, threshold = sizes
    [row] = split([secret], shares, threshold)
    values = [_values(share) for share in row]
    for limb, expected in enumerate(_limbs(secret)):
        points = {holder + 1: values[holder][limb] for holder in range(threshold)}
        assert _interpolated(points, at=0) == expected
        for holder in range(threshold, shares):
            assert _interpolated(points, at=holder + 1) == values[holder][limb]


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_cases_with_different_holders_are_combined_at_once(
    count: int, threshold: int, data: st.DataObject
) -> None:
    secrets, cases = [os.urandom(32) for _ in range(count)], []
    for row in split(secrets, 12, threshold):
        holders = data.draw(st.sets(st.integers(0, 11), min_size=threshold))
        cases.append({holder: row[holder] for holder in holders})
    assert combine_many(cases, threshold) == secrets


def test_known_shares_of_lines_recover_the_constants() -> None:
    # Limb l is the line l + 4096 l x; at x = 16 it is l (65536 + 1) = 0 for every limb.
    shares = {
        holder: _share([limb * (1 + 4096 * (holder + 1)) % PRIME for limb in range(16)])
        for holder in (15, 0, 4)
    }
    assert shares[15] == bytes(34)
    assert combine(shares, 2) == struct.pack(">16H", *range(16))


def test_the_element_that_16_bits_cannot_hold_is_a_bit_of_the_share() -> None:
    # The line through (1, 3) and (2, 65536 = -1) is 7 at zero.
    shares = {0: _share([3] * 16), 1: _share([65536] * 16)}
    assert shares[1] == bytes(32) + b"\xff\xff"
    assert combine(shares, 2) == struct.pack(">16H", *[7] * 16)


def test_most_shares_that_the_field_allows() -> None:
    secret = os.urandom(32)
    [row] = split([secret], MAXIMUM_SHARES, 3)
    assert combine({holder: row[holder] for holder in (0, 40_000, 65_535)}, 3) == secret


def test_extreme_secrets_survive() -> None:
    for secret in (bytes(32), b"\xff" * 32):
        [row] = split([secret], 100, 67)
        assert combine(dict(enumerate(row)), 67) == secret


def test_shares_of_one_secret_are_fresh_and_uniform() -> None:
    # With threshold 2, one holder's limb is uniform over the field whatever the secret.
    rows = split([bytes(32)] * 2000, 1, 1)
    assert {row[0] for row in rows} == {bytes(34)}  # threshold 1 hides nothing
    rows = split([bytes(32)] * 2000, 2, 2)
    drawn = np.array([_values(row[0]) for row in rows]).ravel()
    counts = np.bincount(drawn * 64 // PRIME, minlength=64)
    expected = len(drawn) / 64
    # Chi-squared with 63 degrees of freedom exceeds 150 with a chance below 1e-8.
    assert float(np.sum((counts - expected) ** 2) / expected) < 150
    assert len({row[0] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("secrets", "shares", "threshold"),
    [
        ([bytes(32)], 3, 0),
        ([bytes(32)], 3, 4),
        ([bytes(32)], 0, 0),
        ([bytes(32)], 65_537, 2),
        ([bytes(31)], 3, 2),
        ([bytes(32), bytes(33)], 3, 2),
    ],
)
def test_impossible_splits_are_refused(secrets: list[bytes], shares: int, threshold: int) -> None:
    with pytest.raises(ValueError, match=r"cannot make|32 bytes"):
        split(secrets, shares, threshold)


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {0: bytes(34)},
        {0: bytes(34), 1: bytes(33)},
        {0: bytes(34), 1: bytes(35)},
        {0: bytes(34), 65_536: bytes(34)},
        {-1: bytes(34), 0: bytes(34)},
        {0: bytes(34), 1: b"\x00\x01" + bytes(30) + b"\x80\x00"},
    ],
    ids=["none", "one", "short", "long", "far", "negative", "two-values"],
)
def test_missing_or_malformed_shares_are_refused(shares: dict[int, bytes]) -> None:
    with pytest.raises(MessageError):
        combine(shares, 2)


@given(st.binary(max_size=50))
def test_a_share_is_34_bytes_without_contradiction(share: bytes) -> None:
    well_formed = len(share) == SHARE_BYTES and _share(_values(share)) == share
    if well_formed:
        check_shares([share])
    else:
        with pytest.raises(MessageError):
            check_shares([share])


@given(st.dictionaries(st.integers(-2, 70_000), st.binary(max_size=40), max_size=5))
def test_arbitrary_shares_give_a_message_error_or_some_secret(shares: dict[int, bytes]) -> None:
    with contextlib.suppress(MessageError):
        assert len(combine(shares, 3)) == 32


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=3, max_size=3))
def test_wrong_shares_give_some_secret(limbs: list[bytes]) -> None:
    shares = {holder: limb + bytes(2) for holder, limb in enumerate(limbs)}
    assert len(combine(shares, 3)) == 32


@given(st.integers(1, 30), st.data())
def test_wrong_shares_are_found_whatever_limbs_they_are_wrong_in(holders, data) -> None:
    threshold = data.draw(st.integers(1, holders))
    kept = data.draw(st.sets(st.integers(0, holders - 1), min_size=threshold))
    shares = _held(os.urandom(32), holders, threshold, kept)
    liars = data.draw(st.sets(st.sampled_from(sorted(kept)), max_size=(len(kept) - threshold) // 2))
    for liar in liars:
        limb = data.draw(st.integers(0, 15))
        values = _values(shares[liar])
        values[limb] = (values[limb] + data.draw(st.integers(1, PRIME - 1))) % PRIME
        shares[liar] = _share(values)
    assert find_wrong(shares, threshold) == liars


def test_holders_far_apart_are_told_apart() -> None:
    shares = _held(os.urandom(32), MAXIMUM_SHARES, 2, {0, 7, MAXIMUM_SHARES - 1, 300})
    shares[300] = bytes(SHARE_BYTES)
    assert find_wrong(shares, 2) == {300}


def test_more_wrong_shares_than_can_be_found_are_noticed_or_found_wrong() -> None:
    shares = _held(os.urandom(32), 40, 20, set(range(40)))
    for liar in range(11):
        shares[liar] = os.urandom(32) + bytes(2)
    assert find_wrong(shares, 20) is None


def test_without_spare_shares_none_is_wrong() -> None:
    shares = _held(os.urandom(32), 5, 3, {0, 2, 4})
    shares[0] = bytes(SHARE_BYTES)
    assert find_wrong(shares, 3) == set()
    del shares[0]
    with pytest.raises(MessageError):
        find_wrong(shares, 3)


def _held(secret: bytes, holders: int, threshold: int, kept: set[int]) -> dict[int, bytes]:
    """Return the shares of some holders, by position."""
    (shares,) = split([secret], holders, threshold)
    return {position: shares[position] for position in kept}
