"""Signed requests and messages: what a signature covers, and what no message may say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedspk.api import ProposedRelease, Registration, Report, SignedRequest
from fedspk.errors import FedspkError
from fedspk.secagg.keys import Identity

DEVICE = 32 * "a"
IDENTITY = Identity(DEVICE, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
REQUEST = ("PUT", f"/api/v1/devices/{DEVICE}/report", b'{"version": 1}')
NOW_MS = 1_790_000_000_000
SIGNATURE = (
    "6923706a1ed5d7e3b4e0fe186507889eac0371585a424a56fa698a894c6cd720"
    "a7abe4db1ace3afdf22598da28ee1a802bcc72476cedcef8cb3b64fd1a53c908"
)
REPORT = Report(version=3, content_hash=64 * "0", state="serving", client="0.1.0")


def test_the_owner_of_the_key_signed_it() -> None:
    signed = SignedRequest.sign(IDENTITY, *REQUEST, NOW_MS)
    received = SignedRequest.from_header(signed.header())
    assert received == signed
    assert received.verifies(IDENTITY.public, *REQUEST)


def test_the_header_and_what_is_signed_are_pinned() -> None:
    """Devices and servers of different releases must agree."""
    header = SignedRequest.sign(IDENTITY, *REQUEST, NOW_MS).header()
    assert header == f"Fedspk-Device device={DEVICE}, time={NOW_MS}, signature={SIGNATURE}"


@pytest.mark.parametrize("part", range(3))
def test_a_signature_is_for_one_method_path_and_body(part: int) -> None:
    signed = SignedRequest.sign(IDENTITY, *REQUEST, NOW_MS)
    method, path, body = REQUEST
    others = (("POST", path, body), (method, path + "/", body), (method, path, body + b" "))
    assert not signed.verifies(IDENTITY.public, *others[part])


def test_a_signature_is_for_one_device_time_and_key() -> None:
    signed = SignedRequest.sign(IDENTITY, *REQUEST, NOW_MS)
    stranger = Identity.generate(DEVICE)
    bent = bytes([signed.signature[0] ^ 1]) + signed.signature[1:]
    assert not replace(signed, device=32 * "b").verifies(IDENTITY.public, *REQUEST)
    assert not replace(signed, time_ms=NOW_MS + 1).verifies(IDENTITY.public, *REQUEST)
    assert not replace(signed, signature=bent).verifies(IDENTITY.public, *REQUEST)
    assert not signed.verifies(stranger.public, *REQUEST)
    assert not signed.verifies(b"no key", *REQUEST)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer fedspk_token",
        f"Fedspk-Device device={DEVICE}, time=1",
        f"Fedspk-Device device={DEVICE.upper()}, time=1, signature={128 * '0'}",
        f"Fedspk-Device device={DEVICE}, time={16 * '9'}, signature={128 * '0'}",
        f"Fedspk-Device device={DEVICE}, time=-1, signature={128 * '0'}",
        f"Fedspk-Device device={DEVICE}, time=\u0661, signature={128 * '0'}",
        f"Fedspk-Device device={DEVICE}, time=1, signature={126 * '0'}",
        f"Fedspk-Device device={DEVICE}, time=1, signature={128 * '0'}\n",
    ],
)
def test_another_header_is_no_devices(header: str) -> None:
    assert SignedRequest.from_header(header) is None


def test_messages_survive_their_json() -> None:
    failed = REPORT.model_copy(update={"state": "failed", "failure": "clock", "attempted": 4})
    registration = Registration(device=DEVICE, public_key=64 * "1", token=40 * "t")
    for message in (REPORT, failed, registration):
        assert type(message).from_json(message.to_json()) == message
    proposed = ProposedRelease.from_json(b'{"release": "{}", "files": {"channels/x": "e30="}}')
    assert proposed.files == {"channels/x": b"{}"}


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"version": 0},
        {"content_hash": "0"},
        {"state": "asleep"},
        {"state": "failed"},
        {"failure": "clock"},
        {"state": "updating", "failure": "other"},
        {"state": "failed", "failure": "my dog"},
        {"client": "0.1"},
        {"client": "\u0660.1.0"},
        {"client": "9" * 40 + ".1.0"},
    ],
)
def test_a_wrong_report_is_refused(change: dict[str, object]) -> None:
    text = Report.model_construct(**{**REPORT.model_dump(), **change}).to_json()
    if "surprise" in change:
        text = REPORT.to_json()[:-1] + b', "surprise": 1}'
    with pytest.raises(FedspkError, match="the message is wrong"):
        Report.from_json(text)


def test_what_is_no_message_is_refused_in_one_line() -> None:
    for text in (b"", b"[]", b"\xff", b"[" * 10_000, b'{"device": 1}'):
        with pytest.raises(FedspkError, match="the message is wrong") as caught:
            Registration.from_json(text)
        assert len(str(caught.value).splitlines()) == 1
