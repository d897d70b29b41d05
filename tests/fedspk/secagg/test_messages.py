from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from nonsense import nested
from secagg_simulator import make_request, make_terms

from fedspk.errors import FedspkError
from fedspk.secagg.errors import MessageError
from fedspk.secagg.messages import (
    BOX_BYTES,
    MAXIMUM_COHORT,
    Box,
    KeyOffer,
    Proof,
    Share,
    ShareRequest,
    SharesReply,
    Signed,
    SurvivorsReply,
    SurvivorsRequest,
    UnmaskReply,
    UnmaskRequest,
    UploadReply,
    UploadRequest,
    offer_statement,
    strictly_increasing,
    sum_context,
    survivors_statement,
)

REQUEST = make_request()
OFFER = KeyOffer("device-1", b"s" * 32, b"m" * 32, b"c" * 32, b"g" * 64)
TERMS = make_terms(REQUEST, 5)
BOXES = (Box(0, b"x" * BOX_BYTES), Box(MAXIMUM_COHORT - 1, b"y" * BOX_BYTES))
SHARES = (Share(3, b"h" * 34),)

MESSAGES = [
    REQUEST,
    OFFER,
    TERMS,
    ShareRequest(TERMS, (OFFER, replace(OFFER, device="device-2"))),
    SharesReply(BOXES),
    UploadRequest(b"c" * 32, BOXES),
    UploadReply((Proof(1, b"p" * 16),)),
    SurvivorsRequest(b"c" * 32, (0, 4)),
    SurvivorsReply(b"g" * 64),
    UnmaskRequest(b"c" * 32, (Signed(2, b"g" * 64),), (Proof(1, b"p" * 16),), REQUEST),
    UnmaskRequest(b"c" * 32, (), ()),
    UnmaskReply(SHARES, (), OFFER),
    UnmaskReply((), SHARES, None),
]
KINDS = sorted({type(message) for message in MESSAGES}, key=lambda kind: kind.__name__)

every_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@every_message
def test_a_message_comes_back(message):
    assert type(message).decode(message.encode()) == message


@every_message
@given(data=st.data())
def test_a_cut_or_bent_message_is_an_error_or_another_message(message, data):
    whole = message.encode()
    place = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(MessageError):
        type(message).decode(whole[:place])
    bent = bytearray(whole)
    bent[place] ^= data.draw(st.integers(1, 255))
    with suppress(MessageError):
        assert type(message).decode(bytes(bent)) != message


@given(st.binary(max_size=300))
def test_noise_is_no_message(noise):
    for kind in KINDS:
        with pytest.raises(MessageError):
            kind.decode(noise)


@given(nested(st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=99)))
def test_well_formed_messagepack_of_anything_is_no_message(content):
    for kind in KINDS:
        with pytest.raises(MessageError):
            kind.decode(msgspec.msgpack.encode(content))


@every_kind
def test_deeply_nested_bytes_are_no_message(kind):
    with pytest.raises(MessageError):
        kind.decode(b"\x91" * 100_000)


@every_kind
def test_a_message_has_a_largest_length(kind):
    with pytest.raises(MessageError, match="too long"):
        kind.decode(bytes(1 << 23))


@every_message
def test_no_message_has_more_fields_than_its_own(message):
    fields = msgspec.msgpack.decode(message.encode())
    with pytest.raises(MessageError):
        type(message).decode(msgspec.msgpack.encode([*fields, 0]))


@every_message
def test_a_message_passes_for_no_other(message):
    for kind in KINDS:
        if kind is not type(message):
            with pytest.raises(MessageError):
                kind.decode(message.encode())


MALFORMED = {
    "version": replace(REQUEST, version=2),
    "run": replace(REQUEST, run="not hex"),
    "run, line end": replace(REQUEST, run="ab\n"),
    "purpose": replace(REQUEST, purpose="other"),
    "negative round": replace(REQUEST, round=-1),
    "huge attempt": replace(REQUEST, attempt=2**31),
    "device": replace(OFFER, device="../device"),
    "device, line end": replace(OFFER, device="device\n"),
    "device, empty": replace(OFFER, device=""),
    "short key": replace(OFFER, sealing_key=b"s" * 31),
    "long key": replace(OFFER, masking_key=b"m" * 33),
    "short commitment": replace(OFFER, seed_commitment=b""),
    "long signature": replace(OFFER, signature=b"g" * 65),
    "model": replace(TERMS, model="A" * 64),
    "modulus": replace(TERMS, modulus_bits=64),
    "huge cohort": replace(TERMS, clients=MAXIMUM_COHORT + 1),
    "no threshold": replace(TERMS, threshold=0),
    "degree": replace(TERMS, degree=MAXIMUM_COHORT),
    "huge roster": ShareRequest(TERMS, (OFFER,) * (MAXIMUM_COHORT + 1)),
    "short box": SharesReply((Box(0, b"x" * (BOX_BYTES - 1)),)),
    "long box": SharesReply((Box(0, b"x" * (BOX_BYTES + 1)),)),
    "index": SharesReply((Box(MAXIMUM_COHORT, b"x" * BOX_BYTES),)),
    "negative index": SurvivorsRequest(b"c" * 32, (-1,)),
    "many dead": SurvivorsRequest(b"c" * 32, (0,) * (MAXIMUM_COHORT + 1)),
    "proof": UploadReply((Proof(1, b"p" * 17),)),
    "share": UnmaskReply((Share(1, b"h" * 35),), (), None),
    "context": SurvivorsRequest(b"c" * 31, ()),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_field_out_of_its_range_is_malformed(case):
    message = MALFORMED[case]
    with pytest.raises(MessageError, match="malformed"):
        type(message).decode(message.encode())


@pytest.mark.parametrize("field", ["norm", "noise_scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_terms_hold_finite_numbers(field, value):
    fields = msgspec.msgpack.decode(TERMS.encode())
    fields[1 + TERMS.__struct_fields__.index(field)] = value
    with pytest.raises(MessageError, match="finite"):
        type(TERMS).decode(msgspec.msgpack.encode(fields))


def test_terms_with_a_whole_norm_are_the_same_on_both_sides():
    terms = make_terms(REQUEST, 5, norm=10)
    received = type(terms).decode(terms.encode())
    assert sum_context(terms, ()) == sum_context(received, ())


@pytest.mark.parametrize("field", TERMS.__struct_fields__)
def test_every_term_changes_the_context(field):
    changes = {"purpose": "evaluate", "run": "ab", "model": "c" * 64, "config": "c" * 64}
    value = changes.get(field, getattr(TERMS, field) + 1 if field not in changes else None)
    assert sum_context(replace(TERMS, **{field: value}), (OFFER,)) != sum_context(TERMS, (OFFER,))


@pytest.mark.parametrize("field", OFFER.__struct_fields__)
def test_every_part_of_every_offer_changes_the_context(field):
    value = getattr(OFFER, field)
    other = replace(OFFER, **{field: value[:-1] + ("z" if field == "device" else b"z")})
    assert sum_context(TERMS, (OFFER, other)) != sum_context(TERMS, (OFFER, OFFER))


def test_terms_name_the_sum_that_was_offered_for():
    assert TERMS.instance == REQUEST


@pytest.mark.parametrize(
    "changes",
    [{"precision_bits": 32}, {"norm": 0.0}, {"noise_scale": -1.0}, {"noise_scale": 1e12}],
    ids=str,
)
def test_terms_under_which_a_sum_could_wrap_have_no_quantiser(changes):
    with pytest.raises(FedspkError):
        _ = make_terms(REQUEST, 5, **changes).quantiser


def test_an_offer_is_signed_for_one_sum_device_and_set_of_keys():
    statements = {offer_statement(REQUEST, OFFER)}
    requests = [{"run": "ab"}, {"purpose": "evaluate"}, {"round": 4}, {"attempt": 1}]
    statements |= {offer_statement(make_request(**changes), OFFER) for changes in requests}
    offers = [
        {"device": "device-2"},
        {"sealing_key": OFFER.masking_key, "masking_key": OFFER.sealing_key},
        {"seed_commitment": bytes(32)},
    ]
    statements |= {offer_statement(REQUEST, replace(OFFER, **changes)) for changes in offers}
    assert len(statements) == 1 + len(requests) + len(offers)


def test_an_offer_does_not_sign_its_signature():
    assert offer_statement(REQUEST, OFFER) == offer_statement(
        REQUEST, replace(OFFER, signature=bytes(64))
    )


def test_survivors_are_signed_for_one_sum_and_list():
    statements = [
        survivors_statement(b"c" * 32, ()),
        survivors_statement(b"d" * 32, ()),
        survivors_statement(b"c" * 32, (0,)),
        survivors_statement(b"c" * 32, (0, 1)),
        survivors_statement(b"c" * 32, (1,)),
    ]
    assert len(set(statements)) == len(statements)


def test_no_survivors_statement_is_an_offer_statement():
    assert offer_statement(REQUEST, OFFER)[:14] != survivors_statement(b"c" * 32, ())[:14]


@given(st.lists(st.integers()))
def test_strictly_increasing_is_sorted_and_without_twins(values):
    assert strictly_increasing(values) == (values == sorted(set(values)))
