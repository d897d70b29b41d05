from __future__ import annotations

from contextlib import suppress
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nonsense import damaged, nested
from secagg_simulator import STAGES, Simulation

from fedspk.errors import FedspkError
from fedspk.secagg.device_state import DeviceState

_ENVELOPE_BYTES = 17


def _states():
    """Return what a device remembers after each stage of a sum."""
    simulation = Simulation(3)
    states = {}
    for stage in STAGES:
        simulation.run_stage(stage)
        states[stage] = simulation.devices["device-001"].state()
    return states


_STATES = _states()


def _enveloped(content):
    """Return content as a state of the right version and digest, as another program's would be."""
    return b"\x01" + sha256(content).digest()[:16] + content


@pytest.mark.parametrize("stage", STAGES)
def test_a_state_comes_back_at_every_stage(stage):
    state = DeviceState.decode(_STATES[stage])
    assert state.encode() == _STATES[stage] == _enveloped(_STATES[stage][_ENVELOPE_BYTES:])


@pytest.mark.parametrize("stage", STAGES)
@given(data=st.data())
def test_a_damaged_state_is_no_state_even_under_a_right_digest(stage, data):
    with pytest.raises(FedspkError, match="damaged or of another version"):
        DeviceState.decode(data.draw(damaged(_STATES[stage])))
    content = data.draw(damaged(_STATES[stage][_ENVELOPE_BYTES:]))
    with suppress(FedspkError):
        assert isinstance(DeviceState.decode(_enveloped(content)), DeviceState)


@given(nested(st.floats() | st.binary(max_size=99)))
def test_anything_else_under_a_right_digest_is_an_error_or_a_state(content):
    with suppress(FedspkError):
        state = DeviceState.decode(_enveloped(msgspec.msgpack.encode(content)))
        assert isinstance(state, DeviceState)


@pytest.mark.parametrize("content", [b"\x91" * 100_000, b"\x94\xa1\xff\x80\x80\xc0", b""])
def test_what_is_nested_too_deep_or_no_text_is_no_state(content):
    with pytest.raises(FedspkError):
        DeviceState.decode(_enveloped(content))
