"""What a device does around the protocol: its files, its policy, what it agrees to."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torchless_sum
from flwr.app import ConfigRecord, Context, Message, RecordDict
from tiny_federation import tiny_fleet

from clients import client_app, secure
from clients.enrolment import create_identity, enrol_simulated_fleet
from clients.secure import Contribution, SecureDevice
from fedspk.errors import FedspkError
from fedspk.rounds import (
    RECORD,
    EvaluateRequest,
    MaskedTrainRequest,
    RunConfig,
    SumRequest,
    SumShareRequest,
    TrainRequest,
)
from fedspk.secagg.client import DevicePolicy
from fedspk.secagg.contribution import sum_terms
from fedspk.secagg.errors import SumRefused
from fedspk.secagg.keys import DeviceRegister
from fedspk.secagg.messages import KeyOffer, OfferRequest, SharesReply
from fedspk.secagg.server import SumServer
from simulations.flower_private import act_as_server

MODEL, SIZE = "a" * 64, 3
CONFIG = RunConfig()
INSTANCE = OfferRequest(1, "ab", "train", 4, 0)
NAMES = ["device-0000", "device-0001", "device-0002"]


@pytest.fixture
def fleet(tmp_path):
    enrol_simulated_fleet(tmp_path, NAMES)
    return tmp_path


def device(folder: Path, name: str = NAMES[0], minimum_cohort: int = 2, **policy) -> SecureDevice:
    """The device after a restart: nothing of it is left but its files."""
    return SecureDevice(
        name,
        folder / name / "identity.json",
        folder / "register.json",
        DevicePolicy(minimum_cohort=minimum_cohort, **policy),
        folder / name,
    )


def terms(config=CONFIG, **changes):
    secure, text = config.secure, config.to_json()
    agreed = sum_terms(
        secure,
        INSTANCE,
        cohort=0,
        model=MODEL,
        config=sha256(text.encode()).hexdigest(),
        size=SIZE,
        clients=len(NAMES),
    )
    return msgspec.structs.replace(agreed, **changes)


def shared(folder: Path, config=CONFIG, **changes) -> tuple[SumServer, SumShareRequest]:
    """A cohort whose devices have offered keys, and the next request to each of them."""
    request = SumRequest(INSTANCE.encode())
    offers = [KeyOffer.decode(device(folder, name).offer(request).body) for name in NAMES]
    register = DeviceRegister.load(folder / "register.json")
    server = SumServer(terms(config, **changes), offers, register)
    return server, SumShareRequest(server.share_request().encode(), MODEL, config.to_json())


def uploading(folder: Path) -> MaskedTrainRequest:
    """The request to the first device to train and upload."""
    server, request = shared(folder)
    for name in NAMES:
        reply = device(folder, name).share(request)
        server.receive_shares(name, SharesReply.decode(reply.body))
    body = server.close_sharing()[NAMES[0]].encode()
    return MaskedTrainRequest(MODEL, INSTANCE.round, 0, CONFIG.to_json(), body)


def contribution() -> Contribution:
    figures = {"weight": 2, "loss": 1.0, "steps": 1, "seconds": 0.1}
    return Contribution(figures, np.ones(SIZE, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"norm": 1e6},
        {"maximum_weight": 1 << 20},
        {"precision_bits": 8},
        {"noise_scale": 3.0, "counters": 0},
        {"counters": 7},
        {"threshold": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_terms_that_do_not_follow_from_the_configuration_are_refused(fleet, change):
    _, request = shared(fleet, **change)
    with pytest.raises(SumRefused, match="not those of the run's configuration"):
        device(fleet).share(request)


def test_a_run_without_secure_sums_or_with_another_configuration_is_refused(fleet):
    _, request = shared(fleet)
    plain = replace(request, config=CONFIG.changed(secure=None).to_json())
    with pytest.raises(SumRefused, match="no secure sums"):
        device(fleet).share(plain)
    other = replace(request, config=CONFIG.changed(seed=5).to_json())
    with pytest.raises(SumRefused, match="not those of the run's configuration"):
        device(fleet).share(other)


@pytest.mark.parametrize(
    "change",
    [{"model": "b" * 64}, {"round": 5}, {"config": CONFIG.changed(seed=5).to_json()}],
    ids=lambda change: next(iter(change)),
)
def test_only_what_was_agreed_is_computed_and_uploaded(fleet, change):
    request = uploading(fleet)
    computed = []

    def compute():
        computed.append(1)
        return contribution()

    with pytest.raises(SumRefused, match="not what this device has agreed"):
        device(fleet).upload(replace(request, **change), "train", compute)
    with pytest.raises(SumRefused, match="not what this device has agreed"):
        device(fleet).upload(request, "evaluate", compute)
    assert not computed
    device(fleet).upload(request, "train", compute)
    assert computed == [1]


def test_no_step_is_answered_twice_not_even_after_a_restart(fleet):
    _, share = shared(fleet)
    device(fleet).share(share)
    with pytest.raises(SumRefused):
        device(fleet).share(share)


def test_a_second_upload_of_one_sum_never_leaves(fleet):
    request = uploading(fleet)
    device(fleet).upload(request, "train", contribution)
    with pytest.raises(SumRefused):
        device(fleet).upload(request, "train", contribution)


def test_a_computation_that_fails_can_be_tried_again(fleet):
    request = uploading(fleet)

    def fail():
        raise FedspkError("the training diverged")

    with pytest.raises(FedspkError, match="diverged"):
        device(fleet).upload(request, "train", fail)
    device(fleet).upload(request, "train", contribution)


def test_what_a_device_remembers_is_for_its_owner_alone(fleet):
    device(fleet).offer(SumRequest(INSTANCE.encode()))
    (state,) = (fleet / NAMES[0]).glob("*.state")
    assert state.stat().st_mode & 0o777 == 0o600


def test_a_cohort_below_the_device_s_own_minimum_is_refused(fleet):
    _, request = shared(fleet)
    with pytest.raises(SumRefused, match="smaller than 5"):
        device(fleet, minimum_cohort=5).share(request)


def test_what_a_killed_write_left_is_deleted_and_nothing_else(fleet):
    folder = fleet / NAMES[0]
    request = SumRequest(INSTANCE.encode())
    first = device(fleet).offer(request)
    leftover, other = folder / ".secure-sums.state.x7_q.partial", folder / ".head.bin.a.partial"
    for path in (leftover, other):
        path.write_bytes(b"half a state")
    assert device(fleet).offer(request) == first
    assert not leftover.exists()
    assert other.exists()


def test_a_device_that_asks_for_noise_takes_part_in_no_run_with_less(fleet):
    """The run's noise is that of its configuration; no other is agreed to."""
    privacy = {"noise_multiplier": 2.0, "epsilon": 50.0, "delta": 1e-3}
    config = CONFIG.changed(secure={"privacy": privacy})
    _, with_noise = shared(fleet, config)
    _, without = shared(fleet)
    for request, demanded, is_refused in (
        (without, 0.0, False),
        (without, 0.1, True),
        (with_noise, 2.1, True),
        (with_noise, 2.0, False),
    ):
        offered = (fleet / NAMES[0] / "secure-sums.state").read_bytes()
        if is_refused:
            with pytest.raises(SumRefused, match=f"less than {demanded:g} times"):
                device(fleet, minimum_noise=demanded).share(request)
        else:
            device(fleet, minimum_noise=demanded).share(request)
        (fleet / NAMES[0] / "secure-sums.state").write_bytes(offered)


def test_files_that_are_missing_or_another_device_s_are_named(fleet, tmp_path):
    with pytest.raises(FedspkError, match=r"is the identity of device-0001, not of device-0000"):
        SecureDevice(
            NAMES[0],
            fleet / NAMES[1] / "identity.json",
            fleet / "register.json",
            DevicePolicy(),
            fleet,
        )
    (fleet / NAMES[0] / "identity.json").unlink()
    with pytest.raises(FedspkError, match=r"identity\.json: cannot be read"):
        device(fleet)


def test_a_register_that_changes_is_read_again(fleet):
    _, request = shared(fleet)
    known = DeviceRegister.load(fleet / "register.json").keys
    DeviceRegister({name: known[name] for name in NAMES[:2]}).save(fleet / "register.json")
    with pytest.raises(SumRefused, match="not in the register"):
        device(fleet).share(request)


def _answer(folder, verb, request, **node):
    act_as_server(1)
    message = Message(RecordDict({RECORD: ConfigRecord(dict(request.to_record()))}), 2, verb)
    return client_app.app(message, Context(1, 2, node, RecordDict(), {}))


@pytest.mark.parametrize("given", [{}, {"plain-updates": False}, {"plain-updates": "yes"}])
def test_a_device_sends_nothing_in_clear_unless_its_own_configuration_allows(
    tmp_path, given, caplog
):
    (path,) = tiny_fleet(tmp_path, 1)
    requests = {
        "train": TrainRequest(MODEL, 1, 0, CONFIG.to_json()),
        "evaluate": EvaluateRequest(MODEL, 1, CONFIG.to_json()),
    }
    for verb, request in requests.items():
        reply = _answer(tmp_path, verb, request, device=str(path), **given)
        assert reply.error.reason == "the device failed (FedspkError); its own log says why"
    assert caplog.text.count("sends no update in clear") == 2


@pytest.mark.parametrize("minimum", [1, 0, -3, "many"])
def test_a_minimum_cohort_that_protects_nobody_is_refused(tmp_path, minimum, caplog):
    (path,) = tiny_fleet(tmp_path, 1)
    request = SumRequest(INSTANCE.encode())
    node = {"device": str(path), "minimum-cohort": minimum}
    assert _answer(tmp_path, "query.offer", request, **node).has_error()
    assert "minimum-cohort" in caplog.text


@pytest.mark.parametrize("minimum", [-0.5, float("nan"), float("inf"), True, "much"])
def test_a_minimum_noise_that_is_no_multiple_of_anything_is_refused(tmp_path, minimum, caplog):
    (path,) = tiny_fleet(tmp_path, 1)
    request = SumRequest(INSTANCE.encode())
    node = {"device": str(path), "minimum-noise": minimum}
    assert _answer(tmp_path, "query.offer", request, **node).has_error()
    assert "minimum-noise" in caplog.text


@pytest.mark.parametrize(
    ("node", "cohort"),
    [
        ({}, 5),
        ({"num-partitions": 3, "partition-id": 0}, 3),
        ({"num-partitions": 1, "partition-id": 0}, 2),
        ({"num-partitions": 40, "partition-id": 0}, 5),
        ({"devices": "folder", "partition-id": 0}, 5),
        ({"corpus": "speech"}, 5),
        ({"minimum-cohort": 100, "num-partitions": 3}, 100),
    ],
    ids=str,
)
def test_only_a_simulation_goes_below_the_usual_minimum_cohort(tmp_path, node, cohort, monkeypatch):
    policies = []
    monkeypatch.setattr(secure, "SecureDevice", lambda *_, policy, **__: policies.append(policy))
    (path,) = tiny_fleet(tmp_path, 1)
    monkeypatch.setattr(client_app, "_description", lambda _: path)
    _answer(tmp_path, "query.offer", SumRequest(INSTANCE.encode()), **node, **{"minimum-noise": 2})
    assert policies == [DevicePolicy(minimum_cohort=cohort, minimum_noise=2.0)]


def test_the_steps_of_a_sum_import_no_heavy_library(tmp_path):
    tiny_fleet(tmp_path, 3)
    command = [sys.executable, torchless_sum.__file__, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_an_identity_is_never_overwritten(tmp_path):
    path = tmp_path / "identity.json"
    first = create_identity("kitchen", path)
    before = path.read_bytes()
    with pytest.raises(FedspkError, match="is there already"):
        create_identity("kitchen", path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["identity.json"]
    assert first.public.hex()


def test_a_simulated_fleet_keeps_the_identities_that_it_has(tmp_path):
    register = enrol_simulated_fleet(tmp_path, NAMES[:2])
    before = DeviceRegister.load(register).keys
    after = DeviceRegister.load(enrol_simulated_fleet(tmp_path, NAMES)).keys
    assert {name: after[name] for name in NAMES[:2]} == dict(before)
    assert sorted(after) == NAMES
