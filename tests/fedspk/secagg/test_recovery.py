from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedspk.secagg.errors import SumAborted
from fedspk.secagg.recovery import SharedSecret, recover
from fedspk.secagg.shamir import split

MALFORMED = b"\xff" * 34


def shared(secrets: list[bytes], holders: int, threshold: int) -> list[SharedSecret]:
    """Return the secrets with all their shares, held by the devices 10, 11, ..."""
    return [
        SharedSecret(
            f"device-{index}",
            tuple(range(10, 10 + holders)),
            secret.__eq__,
            dict(enumerate(shares, start=10)),
        )
        for index, (secret, shares) in enumerate(
            zip(secrets, split(secrets, holders, threshold), strict=True)
        )
    ]


@given(st.integers(1, 12), st.data())
def test_secrets_come_back_while_enough_holders_are_honest(holders, data):
    threshold = data.draw(st.integers(1, holders))
    secrets = [os.urandom(32) for _ in range(3)]
    liars = data.draw(st.sets(st.integers(0, holders - 1), max_size=min(3, holders - threshold)))
    cases = shared(secrets, holders, threshold)
    for case in cases:
        for liar in liars:
            case.shares[10 + liar] = data.draw(st.sampled_from([MALFORMED, bytes(34)]))
    assert recover(cases, threshold) == secrets


def test_some_holders_may_lie_among_many():
    secrets = [os.urandom(32) for _ in range(100)]
    cases = shared(secrets, 100, 67)
    for case in cases:
        for liar in (3, 50, 99):
            case.shares[10 + liar] = os.urandom(32) + b"\0\0"
    assert recover(cases, 67) == secrets


def test_a_secret_with_too_few_shares_names_its_device():
    cases = shared([os.urandom(32) for _ in range(2)], 5, 3)
    for holder in (10, 12, 14):
        del cases[1].shares[holder]
    with pytest.raises(SumAborted) as caught:
        recover(cases, 3)
    assert caught.value.suspects == ("device-1",)


@pytest.mark.parametrize("share", [MALFORMED, bytes(34)])
def test_a_secret_that_was_dealt_wrong_names_its_device(share):
    cases = shared([os.urandom(32) for _ in range(3)], 9, 6)
    for holder in range(10, 14):
        cases[2].shares[holder] = share
    with pytest.raises(SumAborted) as caught:
        recover(cases, 6)
    assert caught.value.suspects == ("device-2",)


def test_a_secret_without_spare_shares_is_not_searched_for():
    (case,) = shared([os.urandom(32)], 5, 5)
    case.shares[11] = bytes(34)
    with pytest.raises(SumAborted):
        recover([case], 5)


def test_no_secrets_are_no_work():
    assert recover([], 3) == []
