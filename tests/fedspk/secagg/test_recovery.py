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


def recovered(cases: list[SharedSecret], threshold: int, corrupt: int = 1) -> list[bytes]:
    """Recover from the shares that are there, when every holder has answered."""
    holders = {holder for case in cases for holder in case.holders}
    return recover(cases, threshold, answered=holders, corrupt=corrupt)


def suspects(cases: list[SharedSecret], threshold: int, **given) -> tuple[str, ...]:
    """Return who is blamed when the secrets cannot be recovered."""
    with pytest.raises(SumAborted, match="cannot be recovered") as caught:
        recover(cases, threshold, **given) if given else recovered(cases, threshold)
    return caught.value.suspects


@given(st.integers(1, 12), st.data())
def test_secrets_come_back_while_enough_holders_are_honest(holders, data):
    threshold = data.draw(st.integers(1, holders))
    secrets = [os.urandom(32) for _ in range(3)]
    liars = data.draw(st.sets(st.integers(0, holders - 1), max_size=min(3, holders - threshold)))
    cases = shared(secrets, holders, threshold)
    for case in cases:
        for liar in liars:
            case.shares[10 + liar] = data.draw(st.sampled_from([MALFORMED, bytes(34)]))
    assert recovered(cases, threshold) == secrets


@pytest.mark.parametrize("liars", [range(16), range(84, 100), range(0, 96, 6)], ids=str)
def test_half_of_the_spare_holders_may_lie_among_many(liars):
    secrets = [os.urandom(32) for _ in range(100)]
    cases = shared(secrets, 100, 67)
    for case in cases:
        for liar in liars:
            case.shares[10 + liar] = os.urandom(32) + b"\0\0"
    assert recovered(cases, 67) == secrets


def test_each_holder_may_lie_about_another_secret():
    secrets = [os.urandom(32) for _ in range(30)]
    cases = shared(secrets, 30, 20)
    for number, case in enumerate(cases):
        case.shares[10 + number] = bytes(34)
    assert recovered(cases, 20) == secrets


def test_a_liar_that_is_known_leaves_room_for_others():
    secrets = [os.urandom(32) for _ in range(2)]
    cases = shared(secrets, 30, 20)
    for liar in range(5):
        cases[0].shares[10 + liar] = bytes(34)
    for liar in range(7):  # beyond what decoding alone corrects
        cases[1].shares[10 + liar] = bytes(34)
    assert recovered(cases, 20) == secrets


def test_a_holder_that_was_dealt_a_wrong_share_helps_with_other_secrets():
    secrets = [os.urandom(32) for _ in range(2)]
    cases = shared(secrets, 9, 6)
    for holder in (10, 11):
        cases[0].shares[holder] = bytes(34)
    for holder in (16, 17):  # without the first two as well there are too few
        del cases[1].shares[holder]
    assert recovered(cases, 6) == secrets


def test_a_secret_whose_shares_few_holders_have_names_its_device():
    cases = shared([os.urandom(32) for _ in range(2)], 5, 3)
    for holder in (10, 12, 14):
        del cases[1].shares[holder]
    assert suspects(cases, 3) == ("device-1",)


def test_too_few_answers_blame_nobody():
    cases = shared([os.urandom(32) for _ in range(2)], 5, 4)
    for case in cases:
        for holder in (10, 12):
            del case.shares[holder]
    assert suspects(cases, 4, answered={11, 13, 14}, corrupt=1) == ()
    for holder in (11, 13):  # nobody knows what the others would have had
        del cases[1].shares[holder]
    assert suspects(cases, 4, answered={11, 13, 14}, corrupt=1) == ()


@pytest.mark.parametrize("share", [MALFORMED, bytes(34)])
def test_a_secret_that_was_dealt_wrong_names_its_device(share):
    cases = shared([os.urandom(32) for _ in range(3)], 9, 6)
    for holder in range(10, 14):
        cases[2].shares[holder] = share
    assert suspects(cases, 6) == ("device-2",)


@pytest.mark.parametrize(("holders", "threshold"), [(9, 7), (20, 14)])
def test_a_dealer_that_bends_other_shares_in_every_limb_is_named(holders, threshold):
    cases = shared([os.urandom(32) for _ in range(3)], holders, threshold)
    for limb in range(16):  # each limb has one wrong share, which alone could be corrected
        holder = 10 + limb % holders
        share = bytearray(cases[1].shares[holder])
        share[2 * limb + 1] ^= 1
        cases[1].shares[holder] = bytes(share)
    assert suspects(cases, threshold) == ("device-1",)


def test_all_whose_secrets_were_dealt_wrong_are_named_at_once():
    cases = shared([os.urandom(32) for _ in range(6)], 9, 6)
    for number in (1, 4):
        cases[number].shares.clear()
    assert suspects(cases, 6) == ("device-1", "device-4")


def test_a_liar_without_whom_there_are_too_few_gets_nobody_blamed():
    cases = shared([os.urandom(32) for _ in range(3)], 7, 5)
    for holder in (15, 16):
        for case in cases:
            del case.shares[holder]
    for case in cases[:1]:
        case.shares[10] = bytes(34)
    assert suspects(cases, 5, answered=range(10, 15), corrupt=1) == ()


def test_liars_up_to_the_number_foreseen_get_nobody_blamed():
    cases = shared([os.urandom(32) for _ in range(3)], 30, 21)
    for liar in range(5):
        cases[0].shares[10 + liar] = bytes(34)
    everyone = range(10, 40)
    assert suspects(cases, 21, answered=everyone, corrupt=5) == ()
    assert suspects(cases, 21, answered=everyone, corrupt=4) == ("device-0",)


def test_liars_that_spoil_most_secrets_get_nobody_blamed():
    cases = shared([os.urandom(32) for _ in range(10)], 10, 7)
    for case in cases[:6]:
        for liar in range(4):
            case.shares[10 + liar] = bytes(34)
    assert suspects(cases, 7) == ()


def test_a_secret_without_spare_shares_is_not_searched_for():
    (case,) = shared([os.urandom(32)], 5, 5)
    case.shares[11] = bytes(34)
    assert suspects([case], 5) == ()


def test_no_secrets_are_no_work():
    assert recovered([], 3) == []
