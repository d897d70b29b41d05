"""The API over HTTP: versions, changes, uploads, proposals, devices."""

from __future__ import annotations

import base64
import hashlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
from main_server import SigningDevice, bearer, make_service, now_ms, serving
from tuf.api.metadata import Metadata, Targets
from version_repository import evaluated, keys_but, keys_of

from fedspk.api import API, CLOCK_MARGIN
from fedspk.proposals import Proposal
from server import operations
from server.creation import AGGREGATOR
from server.repository import Repository
from server.service import Service


@pytest.fixture
def api(service: Service) -> Iterator[Api]:
    with serving(service) as client:
        tokens = {role: service.registry.add_operator(role, role) for role in ROLES}
        yield Api(client, tokens)


ROLES = ("viewer", "operator", "aggregator")


class Api:
    """Requests by role."""

    def __init__(self, client: httpx.Client, tokens: dict[str, str]) -> None:
        self.client = client
        self._tokens = tokens

    def __call__(self, role: str, method: str, path: str, **more: Any) -> httpx.Response:
        return self.client.request(method, API + path, headers=bearer(self._tokens[role]), **more)

    def upload(self, model: Path, role: str = "operator") -> str:
        """Upload a model file and return its SHA-256."""
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        answer = self(role, "PUT", f"/uploads/{digest}", content=model.read_bytes())
        assert answer.status_code in (200, 201), answer.text
        return digest

    def publish(self, model: Path, eer: float = 5.0, **more: Any) -> httpx.Response:
        """Upload and publish a model."""
        body = {"model": self.upload(model), "manifest": evaluated(eer), **more}
        return self("operator", "POST", "/versions", json=body)


def refused(answer: httpx.Response, status: int, words: str) -> None:
    """Expect a refusal of one sentence."""
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert "Traceback" not in answer.text


# Versions


def test_the_life_of_a_version(api: Api, models: list[Path], repository: Repository) -> None:
    answer = api.publish(models[1], 5.2, channel="canary", share=0.25)
    assert answer.status_code == 201, answer.text
    assert answer.json()["versions"] == [{"kind": "model", "version": 2}]
    assert answer.json()["channels"][0]["share"] == 0.25
    promoted = api("operator", "POST", "/promotions", json={"version": 2, "channel": "stable"})
    assert promoted.status_code == 201
    assert api("operator", "POST", "/rollbacks", json={"to": 1}).status_code == 201
    found = api("viewer", "GET", "/versions").json()
    assert [each["version"] for each in found["versions"]] == [1, 2, 3]
    assert {each["name"]: each["version"] for each in found["channels"]} == {
        "stable": 3,
        "canary": 3,
    }
    assert api("viewer", "GET", "/versions/model/3").json()["rolled_back_to"] == 1
    whos = [(each["action"], each["who"]) for each in repository.audit.entries()][-3:]
    assert whos == [("publish", "operator"), ("promote", "operator"), ("rollback", "operator")]
    refused(api("viewer", "GET", "/versions/model/9"), 404, "no model version 9")


def test_versions_are_compared(api: Api, models: list[Path]) -> None:
    api.publish(models[1], 4.5)
    found = api("viewer", "GET", "/versions/1/compare/2").json()
    assert found["eer_difference"] == pytest.approx(-0.5)
    assert found["intervals_overlap"] is True
    assert found["same_weights"] is False
    assert found["a"]["version"] == 1
    assert found["configuration"] == []


def test_a_worse_version_needs_a_reason_which_is_recorded(
    api: Api, models: list[Path], repository: Repository
) -> None:
    refused(api.publish(models[1], 9.0, channel="stable"), 422, "worse by more than")
    assert api.publish(models[1], 9.0, channel="stable", forced="a drill").status_code == 201
    assert repository.audit.entries()[-1]["forced"] == "a drill"
    refused(api.publish(models[0], channel="stable", forced="two\nlines"), 422, "line of text")


def test_what_does_not_fit_the_state_is_a_conflict(api: Api, repository: Repository) -> None:
    again = {"version": 1, "channel": "stable"}
    refused(api("operator", "POST", "/promotions", json=again), 409, "already")
    refused(api("operator", "POST", "/rollbacks", json={"to": 1}), 409, "nothing is to be undone")
    refused(api("operator", "POST", "/rollbacks", json={"to": 7}), 404, "no version 7")
    with repository.changing():
        canary = {"version": 1, "channel": "canary"}
        refused(api("operator", "POST", "/promotions", json=canary), 409, "being changed")


def test_without_the_aggregators_key_nothing_is_published(
    repository: Repository, models: list[Path]
) -> None:
    service = make_service(repository, keys_but(repository, AGGREGATOR))
    before = repository.read().timestamp.signed.version
    with serving(service) as client:
        api = Api(client, {"operator": service.registry.add_operator("ann", "operator")})
        answer = api.publish(models[1])
        refused(answer, 409, "release-aggregator")
        assert "--propose" in answer.json()["error"]
    assert repository.read().timestamp.signed.version == before


def test_a_change_by_the_command_line_is_seen_at_once(
    api: Api, repository: Repository, models: list[Path]
) -> None:
    assert len(api("viewer", "GET", "/versions").json()["versions"]) == 1
    with repository.changing() as state:
        made = operations.publication(repository, state, models[1], evaluated(5.0))
        operations.publish(repository, state, made, keys_of(repository), "publish")
    assert len(api("viewer", "GET", "/versions").json()["versions"]) == 2


def test_the_audit_log_is_paged(api: Api, models: list[Path]) -> None:
    api.publish(models[1])
    first = api("viewer", "GET", "/audit", params={"limit": 2}).json()
    assert first["entries"][0]["action"] == "publish"
    older = api("viewer", "GET", "/audit", params={"before": first["before"]}).json()
    assert older["entries"][-1]["action"] == "init"
    assert older["before"] is None
    assert all(each not in first["entries"] for each in older["entries"])


# Uploads


def test_an_upload_must_have_its_hash(api: Api, repository: Repository) -> None:
    answer = api("aggregator", "PUT", f"/uploads/{'0' * 64}", content=b"model")
    refused(answer, 422, "altered on its way")
    assert [*(repository.folder / "uploads").iterdir()] == []


def test_an_upload_may_be_repeated_and_is_gone_when_published(
    api: Api, models: list[Path], repository: Repository
) -> None:
    digest = api.upload(models[1])
    again = api("operator", "PUT", f"/uploads/{digest}", content=models[1].read_bytes())
    assert again.status_code == 200
    assert api.publish(models[1]).status_code == 201
    assert [*(repository.folder / "uploads").iterdir()] == []
    body = {"model": digest, "manifest": {}}
    refused(api("operator", "POST", "/versions", json=body), 404, "no upload")


def test_all_uploads_together_have_a_limit(
    api: Api, repository: Repository, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = models[0].stat().st_size
    monkeypatch.setattr("server.uploads.MOST_WAITING", size * 3 // 2)
    first = api.upload(models[0])
    digest = hashlib.sha256(models[1].read_bytes()).hexdigest()
    path, content = f"/uploads/{digest}", models[1].read_bytes()
    refused(api("aggregator", "PUT", path, content=content), 409, "of them, wait already")
    monkeypatch.undo()
    monkeypatch.setattr("server.uploads.MOST_FILES", 1)
    refused(api("aggregator", "PUT", path, content=content), 409, "1 uploads, or")
    assert [each.name for each in (repository.folder / "uploads").iterdir()] == [first]


def test_uploads_leave_room_for_metadata(
    api: Api, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(repository.folder).free
    monkeypatch.setattr("server.uploads.LEAST_FREE", free + (1 << 30))
    monkeypatch.setattr("server.uploads.LEAST_SHARE", 1.0)
    answer = api("aggregator", "PUT", f"/uploads/{hashlib.sha256(b'x').hexdigest()}", content=b"x")
    refused(answer, 507, "disk is full")
    assert [*(repository.folder / "uploads").iterdir()] == []


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_has_a_limit(repository: Repository, chunked: bool) -> None:
    service = make_service(repository, most_upload=1000)
    with serving(service) as client:
        api = Api(client, {"operator": service.registry.add_operator("ann", "operator")})
        content: Any = iter([b"x" * 600] * 2) if chunked else b"x" * 1200
        refused(api("operator", "PUT", f"/uploads/{'0' * 64}", content=content), 413, "longer")
        assert not [*(repository.folder / "uploads").glob("*")]


def test_a_body_has_a_limit(api: Api) -> None:
    body = {"version": 1, "channel": "stable", "forced": "x" * (1 << 20)}
    refused(api("operator", "POST", "/promotions", json=body), 413, "longer than 1048576")


def test_what_is_no_model_is_not_published(api: Api, tmp_path: Path) -> None:
    for content in (b"", b"no model", b"\xff" * 100):
        file = tmp_path / "file"
        file.write_bytes(content)
        refused(api.publish(file), 422, "safetensors")


# Proposals


def proposal_of(repository: Repository, model: Path, eer: float = 5.0) -> Proposal:
    """Return a proposal for the channel training, signed by the aggregator."""
    state = repository.read()
    made = operations.publication(repository, state, model, evaluated(eer), "training")
    (away,) = keys_of(repository).keys() - keys_but(repository, AGGREGATOR).keys()
    made.sign([keys_of(repository)[away]])
    return made


def body_of(proposal: Proposal) -> dict[str, Any]:
    """Return what the aggregator sends."""
    files = {path: each for path, each in proposal.files.items() if isinstance(each, bytes)}
    return {
        "release": proposal.release.to_bytes().decode(),
        "files": {path: base64.b64encode(each).decode() for path, each in files.items()},
    }


@pytest.fixture
def parted(repository: Repository) -> Iterator[Api]:
    """A server without the aggregator's key."""
    service = make_service(repository, keys_but(repository, AGGREGATOR))
    with serving(service) as client:
        yield Api(client, {role: service.registry.add_operator(role, role) for role in ROLES})


def test_a_proposal_is_signed_and_published_once(
    parted: Api, repository: Repository, models: list[Path]
) -> None:
    proposal = proposal_of(repository, models[1])
    missing = parted("aggregator", "POST", "/proposals", json=body_of(proposal))
    refused(missing, 404, "no upload")
    parted.upload(models[1], "aggregator")
    first = parted("aggregator", "POST", "/proposals", json=body_of(proposal))
    assert first.status_code == 201, first.text
    assert first.json()["versions"] == [{"kind": "model", "version": 2}]
    state = repository.read()
    assert state.release is not None
    assert len(state.release.signatures) == 2
    version = state.timestamp.signed.version
    # The reply may have been lost.
    assert parted("aggregator", "POST", "/proposals", json=body_of(proposal)).status_code == 200
    assert repository.read().timestamp.signed.version == version
    assert repository.audit.entries()[-1]["who"] == "aggregator"


def test_of_two_proposals_one_must_be_made_anew(
    parted: Api, repository: Repository, models: list[Path]
) -> None:
    first, second = (proposal_of(repository, model) for model in models[:2])
    for model in models[:2]:
        parted.upload(model)
    assert parted("operator", "POST", "/proposals", json=body_of(first)).status_code == 201
    late = parted("operator", "POST", "/proposals", json=body_of(second))
    refused(late, 409, "does not follow the present release")


def unsigned(body: dict[str, Any]) -> None:
    metadata = Metadata[Targets].from_bytes(body["release"].encode())
    metadata.signatures.clear()
    body["release"] = metadata.to_bytes().decode()


def altered(body: dict[str, Any]) -> None:
    metadata = Metadata[Targets].from_bytes(body["release"].encode())
    del metadata.signed.targets["channels/stable.json"]
    body["release"] = metadata.to_bytes().decode()


def without_a_file(body: dict[str, Any]) -> None:
    body["files"].popitem()


def with_another_file(body: dict[str, Any]) -> None:
    body["files"]["../../keys/x"] = ""


def with_another_content(body: dict[str, Any]) -> None:
    body["files"]["channels/training.json"] = base64.b64encode(b"{}").decode()


def no_metadata(body: dict[str, Any]) -> None:
    body["release"] = "{}"


def with_another_hash(body: dict[str, Any]) -> None:
    body["release"] = body["release"].replace("channels/training.json", "channels/other.json")


@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (unsigned, 409, "release-aggregator"),
        (altered, 422, "removes"),
        (without_a_file, 422, "is missing"),
        (with_another_file, 422, "not new"),
        (with_another_content, 422, "is not the file"),
        (no_metadata, 422, "is not release metadata"),
        (with_another_hash, 422, "no part of a release"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_wrong_proposal_is_refused_and_nothing_changes(
    parted: Api, repository: Repository, models: list[Path], spoil: Any, status: int, words: str
) -> None:
    parted.upload(models[1])
    body = body_of(proposal_of(repository, models[1]))
    before = repository.read().timestamp.signed.version
    spoil(body)
    refused(parted("aggregator", "POST", "/proposals", json=body), status, words)
    assert repository.read().timestamp.signed.version == before


def test_a_signature_over_something_else_is_refused(
    parted: Api, repository: Repository, models: list[Path]
) -> None:
    parted.upload(models[1])
    proposal = proposal_of(repository, models[1])
    proposal.release.signed.expires = proposal.release.signed.expires.replace(second=0, minute=0)
    metadata = proposal.release
    body = body_of(proposal)
    assert metadata.signatures
    refused(parted("aggregator", "POST", "/proposals", json=body), 422, "not valid")


# Devices


def test_a_device_registers_with_its_key_and_reports(api: Api) -> None:
    invited = api("operator", "POST", "/invitations", json={"name": "kitchen"}).json()
    device = SigningDevice(1)
    assert device.register(api.client, invited["token"]).status_code == 201
    assert device.register(api.client, invited["token"]).status_code == 200
    assert device.report(api.client, state="updating", attempted=2).status_code == 204
    found = api("viewer", "GET", f"/devices/{device.id}").json()
    assert (found["name"], found["report"]["state"]) == ("kitchen", "updating")
    assert api("viewer", "GET", "/fleet").json()["versions"]["1"]["updating"] == 1
    listed = api("viewer", "GET", "/devices", params={"version": 1}).json()
    assert (listed["total"], listed["devices"][0]["device"]) == (1, device.id)
    keys = api("aggregator", "GET", "/register").json()
    assert keys == {"format": 1, "devices": {device.id: device.identity.public.hex()}}
    assert api("operator", "DELETE", f"/devices/{device.id}").json()["state"] == "revoked"
    refused(device.report(api.client), 403, "revoked")
    assert api("aggregator", "GET", "/register").json()["devices"] == {}


def test_an_invitation_is_withdrawn_by_its_name(api: Api) -> None:
    token = api("operator", "POST", "/invitations", json={"name": "kitchen"}).json()["token"]
    assert api("operator", "DELETE", "/devices/kitchen").json()["state"] == "revoked"
    refused(SigningDevice(1).register(api.client, token), 403, "revoked")
    refused(api("operator", "DELETE", "/devices/cellar"), 404, "no device")


def test_a_report_takes_two_turns_of_a_thread(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    invited = api("operator", "POST", "/invitations", json={"name": "kitchen"}).json()
    device = SigningDevice(1)
    device.register(api.client, invited["token"])
    turns, run_sync = [], anyio.to_thread.run_sync

    async def counted(function: Any, *arguments: Any, **more: Any) -> Any:
        turns.append(function)
        return await run_sync(function, *arguments, **more)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    assert device.report(api.client).status_code == 204
    assert len(turns) == 2, "the signature is judged, and the report kept"


def test_a_request_is_accepted_once_and_only_near_its_time(api: Api) -> None:
    invited = api("operator", "POST", "/invitations", json={"name": "kitchen"}).json()
    device = SigningDevice(1)
    device.register(api.client, invited["token"])
    time_ms = now_ms() + 1000
    assert device.report(api.client, time_ms).status_code == 204
    refused(device.report(api.client, time_ms), 401, "no later than the last one")
    margin = round(CLOCK_MARGIN.total_seconds() * 1000)
    for wrong in (now_ms() - margin - 2000, now_ms() + margin + 2000):
        answer = device.report(api.client, wrong)
        refused(answer, 401, "set the device's clock")
        assert abs(answer.json()["server_time"] - now_ms()) < 10_000


def test_a_signature_is_the_devices_own_and_over_the_whole_request(api: Api) -> None:
    token = api("operator", "POST", "/invitations", json={"name": "kitchen"}).json()["token"]
    device, thief = SigningDevice(1), SigningDevice(1)
    # The thief has seen the device's public key, not the private one.
    stolen = device.registration(token).to_json()
    refused(thief.send(api.client, "POST", "/devices", stolen), 401, "not signed by this device")
    device.register(api.client, token)
    refused(thief.report(api.client), 401, "not signed by this device")
    other = SigningDevice(2)
    body = b'{"version":1}'
    path = f"/devices/{device.id}/report"
    refused(other.send(api.client, "PUT", path, body), 401, "not signed by this device")
    refused(other.report(api.client), 401, "not registered")


def test_reports_at_once_are_all_kept(api: Api, service: Service) -> None:
    fleet = [SigningDevice(number) for number in range(24)]
    for device in fleet:
        token = service.registry.invite(f"d{device.number}").token
        service.registry.register(device.registration(token), 1)
    failed: list[int] = []

    def report(part: list[SigningDevice]) -> None:
        with httpx.Client(base_url=api.client.base_url) as client:
            for version in range(1, 5):
                answers = [device.report(client, version=version) for device in part]
                failed.extend(each.status_code for each in answers if each.status_code != 204)

    threads = [threading.Thread(target=report, args=(fleet[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert service.registry.fleet().versions[4].serving == 24


# Health


def test_health_tells_what_is_wrong(api: Api, repository: Repository) -> None:
    healthy = api.client.get("/healthz")
    assert healthy.status_code == 200
    assert 0 < healthy.json()["timestamp_seconds"] <= 3 * 24 * 3600
    (repository.metadata / "timestamp.json").write_text("{}")
    sick = api.client.get("/healthz")
    assert sick.status_code == 503
    assert sick.json()["repository"] is False
    assert str(repository.folder) not in sick.text
    assert api.client.head("/healthz").status_code == 503


def test_why_the_server_cannot_answer_is_for_its_log(
    api: Api, service: Service, repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(repository.folder)
    (repository.metadata / "timestamp.json").unlink()
    (repository.metadata / "timestamp.json").mkdir()
    refused(api("viewer", "GET", "/versions"), 503, "its log says why")
    assert folder in caplog.text
    with sqlite3.connect(repository.folder / "registry.sqlite") as registry:
        registry.execute("DROP TABLE operators")
    caplog.clear()
    for path in (f"{API}/versions", "/metadata/timestamp.json"):
        answer = api.client.get(path, headers=bearer("nobody"))
        refused(answer, 503, "its log says why")
        assert "operators" not in answer.text
    for content in (b"{}", b"x" * 9000):
        answer = api("aggregator", "POST", "/proposals", content=content)
        refused(answer, 503, "its log says why")
    assert "no such table" in caplog.text
