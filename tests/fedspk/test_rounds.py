from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nonsense import damaged, nested

from fedspk.errors import FedspkError
from fedspk.rounds import (
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    MaskedEvaluateRequest,
    MaskedReply,
    MaskedTrainRequest,
    RunConfig,
    SumReply,
    SumRequest,
    SumShareRequest,
    TrainReply,
    TrainRequest,
)
from fedspk.secagg.config import SecureConfig

_MESSAGES = [
    DescribeReply("device-0001"),
    TrainRequest("ab" * 32, 3, 2, RunConfig().to_json()),
    TrainReply("device-0001", 12.0, 0.5, 8, 1.5, "cd" * 32, b""),
    TrainReply("device-0001", 12.0, 0.5, 8, 1.5, "", b"\x00\x01"),
    EvaluateRequest("ab" * 32, 3, RunConfig().to_json()),
    EvaluateReply("device-0001", 0.25, 7, 0.1),
    DescribeRequest(3),
    SumRequest(b"\x01"),
    SumShareRequest(b"\x01", "ab" * 32, RunConfig().to_json()),
    SumReply(b"\x02"),
    MaskedTrainRequest("ab" * 32, 3, 2, RunConfig().to_json(), b"\x03"),
    MaskedEvaluateRequest("ab" * 32, 3, RunConfig().to_json(), b"\x03"),
    MaskedReply(b"\x04", "cd" * 32, b""),
]


every_message = pytest.mark.parametrize("message", _MESSAGES, ids=lambda m: type(m).__name__)


@every_message
def test_a_message_comes_back_from_its_record(message):
    assert type(message).from_record(message.to_record()) == message


@pytest.mark.parametrize(
    "change", [{"weight": "12"}, {"weight": True}, {"delta": ""}, {"steps": 1.5}]
)
def test_a_field_of_the_wrong_type_is_named(change):
    (name,) = change
    with pytest.raises(FedspkError, match=f"field '{name}'"):
        TrainReply.from_record({**_MESSAGES[2].to_record(), **change})


def test_a_missing_field_is_named():
    with pytest.raises(FedspkError, match="field 'device'"):
        DescribeReply.from_record({"name": "device-0001"})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e300])
@pytest.mark.parametrize("name", ["weight", "loss", "seconds"])
def test_a_number_that_would_spoil_a_sum_is_refused(name, number):
    with pytest.raises(FedspkError, match=f"field '{name}' is"):
        TrainReply.from_record({**_MESSAGES[2].to_record(), name: number})


def test_whole_numbers_are_taken_for_floats():
    record = replace(_MESSAGES[2]).to_record() | {"weight": 12}
    assert TrainReply.from_record(record).weight == 12.0


def _flower_values():
    """Draw what a ConfigRecord can hold, and what it cannot."""
    integers = st.integers(-(2**63), 2**63 - 1)
    one = st.booleans() | integers | st.floats() | st.text() | st.binary(max_size=40)
    return one | st.lists(one, max_size=3) | st.none()


@every_message
@given(data=st.data())
def test_a_record_of_anything_is_an_error_or_a_message_of_sensible_fields(message, data):
    record = message.to_record()
    names = st.sampled_from(sorted(record)) | st.text(max_size=9)
    record |= data.draw(st.dictionaries(names, _flower_values(), max_size=3))
    for name in data.draw(st.sets(st.sampled_from(sorted(record)), max_size=1)):
        del record[name]
    try:
        read = type(message).from_record(record)
    except FedspkError:
        return
    assert vars(read).keys() == vars(message).keys()
    for field in fields(message):
        value = getattr(read, field.name)
        assert type(value) is type(getattr(message, field.name))
        assert not isinstance(value, int | float) or (math.isfinite(value) and abs(value) < 1e15)


@given(st.data())
def test_a_configuration_of_anything_is_an_error_or_a_configuration(data):
    text = RunConfig().to_json()
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(json.loads(text))), nested()))
    for broken in (
        data.draw(damaged(text.encode())).decode(errors="replace"),
        json.dumps(json.loads(text) | changes),
        json.dumps(data.draw(nested())),
    ):
        try:
            config = RunConfig.from_json(broken)
        except FedspkError as error:
            assert str(error).startswith("The run configuration is wrong: ")
        else:
            assert RunConfig.from_json(config.to_json()) == config


def test_a_configuration_nested_too_deep_is_an_error():
    with pytest.raises(FedspkError, match="configuration is wrong"):
        RunConfig.from_json("[" * 100_000)


def test_a_configuration_comes_back_from_its_text():
    config = RunConfig().changed(
        encoder_params={"width": 0.5, "blocks": 2, "flag": True, "name": "x"}, codeword_seed=4
    )
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"colour": 1}, "colour"),
        ({"name": "../up"}, "name"),
        ({"optimiser": "adam"}, "optimiser"),
        ({"minimum_reply_fraction": 1.5}, "minimum_reply_fraction"),
    ],
)
def test_a_wrong_field_is_one_clear_error(change, words):
    with pytest.raises(FedspkError, match=f"The run configuration is wrong: {words}"):
        RunConfig().changed(**change)


def test_text_that_is_no_configuration_is_an_error():
    with pytest.raises(FedspkError, match="configuration is wrong"):
        RunConfig.from_json("[]")


def test_more_rounds_continue_a_run_unless_the_rate_depends_on_their_number():
    config = RunConfig().changed(rounds=3)
    assert config.fingerprint() == config.changed(rounds=9).fingerprint()
    assert config.fingerprint() != config.changed(seed=1).fingerprint()
    over_run = config.changed(decay="run")
    assert over_run.fingerprint() != over_run.changed(rounds=9).fingerprint()


def test_secure_sums_are_on_unless_they_are_switched_off():
    config = RunConfig()
    assert config.secure == SecureConfig()
    assert config.changed(secure=False).secure is None
    assert RunConfig.from_json(config.changed(secure=None).to_json()).secure is None
    own = config.changed(secure={"norm": 0.5})
    assert own.secure == SecureConfig(norm=0.5)
    assert RunConfig.from_json(own.to_json()) == own
    with pytest.raises(FedspkError, match="secure\\.norm"):
        config.changed(secure={"norm": 0})


def test_patience_with_a_sum_does_not_decide_its_numbers():
    config = RunConfig()
    slow = config.changed(secure={"attempts": 9, "stage_timeout_seconds": 1.0})
    assert slow.fingerprint() == config.fingerprint()
    assert config.changed(secure={"norm": 1.0}).fingerprint() != config.fingerprint()
    assert config.changed(secure=None).fingerprint() != config.fingerprint()
