"""What a token of the role aggregator may change, although the other party's key signed it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from main_server import bearer, make_service, serving
from version_repository import evaluated, keys_but, keys_of, publish

from fedspk.api import API
from fedspk.proposals import Content, Proposal, latest_version
from fedspk.release import (
    Channel,
    ChannelName,
    channel_path,
    draft_manifest,
    manifest_path,
    model_path,
)
from server import operations
from server.creation import AGGREGATOR
from server.repository import Repository, now

SALT = "5a17"
CANARY = Channel(name="canary", version=1, share=0.25, salt=SALT)

Send = Callable[[str, Mapping[str, Content]], httpx.Response]


@pytest.fixture
def send(repository: Repository) -> Iterator[Send]:
    """Propose targets, signed with the aggregator's key, with the token of a role."""
    service = make_service(repository, keys_but(repository, AGGREGATOR))
    keys = keys_of(repository)
    (own,) = keys.keys() - service.signers.keys()
    tokens = {
        role: service.registry.add_operator(role, role) for role in ("operator", "aggregator")
    }
    with serving(service) as client:

        def sent(role: str, files: Mapping[str, Content]) -> httpx.Response:
            proposal = Proposal.following(repository.read().release, files, now())
            proposal.sign([keys[own]])
            small = {}
            for path, content in files.items():
                if isinstance(content, bytes):
                    small[path] = base64.b64encode(content).decode()
                else:
                    data = content.read_bytes()
                    url = f"{API}/uploads/{hashlib.sha256(data).hexdigest()}"
                    client.put(url, content=data, headers=bearer(tokens[role]))
            body = {"release": proposal.release.to_bytes().decode(), "files": small}
            return client.post(f"{API}/proposals", json=body, headers=bearer(tokens[role]))

        yield sent
    service.registry.close()


def version(repository: Repository, model: Path, **facts: Any) -> dict[str, Content]:
    """Return the targets of the next version; `facts` replace fields of its manifest."""
    number = latest_version(repository.read().released, "model") + 1
    made = draft_manifest(evaluated(5.0), model, number, created=now().isoformat())
    manifest = made.model_copy(update=facts)
    return {
        model_path("model", number): model,
        manifest_path("model", number): manifest.to_json(),
    }


def naming(name: ChannelName, number: int, **more: Any) -> dict[str, Content]:
    """Return the target of a channel."""
    return {channel_path(name): Channel(name=name, version=number, **more).to_json()}


def canaries(repository: Repository, channel: Channel = CANARY) -> None:
    """Let an operator name the first canaries, and the settings let aggregators follow."""
    files = {channel_path("canary"): channel.to_json()}
    with repository.changing() as state:
        made = Proposal.following(state.release, files, now())
        operations.publish(repository, state, made, keys_of(repository), "promote")
    (repository.folder / "server.toml").write_text("aggregator-canary = true\n")


def refused(repository: Repository, answer: httpx.Response, words: str, status: int = 403) -> None:
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert repository.audit.entries()[-1]["action"] != "accept"


def test_a_run_adds_a_version_and_lets_training_name_it(
    repository: Repository, models: list[Path], send: Send
) -> None:
    answer = send("aggregator", {**version(repository, models[1]), **naming("training", 2)})
    assert answer.status_code == 201, answer.text


def test_stable_is_for_operators(repository: Repository, models: list[Path], send: Send) -> None:
    files = {**version(repository, models[1]), **naming("stable", 2)}
    refused(repository, send("aggregator", files), "may not set channel stable")
    assert send("operator", files).status_code == 201


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"rolled_back_to": 1}, "may not go back to an earlier version"),
        ({"minimum_client": "999.0.0"}, "devices would be left behind"),
    ],
    ids=["goes back", "no device can use it"],
)
def test_what_a_manifest_of_a_run_may_not_say(
    repository: Repository, models: list[Path], send: Send, facts: dict[str, Any], words: str
) -> None:
    files = {**version(repository, models[0], **facts), **naming("training", 2)}
    refused(repository, send("aggregator", files), words)
    assert send("operator", files).status_code == 201


def test_canaries_are_for_operators_unless_the_settings_say_otherwise(
    repository: Repository, models: list[Path], send: Send
) -> None:
    canaries(repository)
    files = {
        **version(repository, models[1]),
        **naming("canary", 2, share=CANARY.share, salt=SALT),
    }
    (repository.folder / "server.toml").unlink()
    words = "channel canary unless server.toml says aggregator-canary = true"
    refused(repository, send("aggregator", files), words)
    (repository.folder / "server.toml").write_text("aggregator-canary = true\n")
    assert send("aggregator", files).status_code == 201


def test_the_first_canaries_are_chosen_by_an_operator(
    repository: Repository, models: list[Path], send: Send
) -> None:
    (repository.folder / "server.toml").write_text("aggregator-canary = true\n")
    files = {**version(repository, models[1]), **naming("canary", 2, share=0.1, salt=SALT)}
    refused(repository, send("aggregator", files), "first version of channel canary")


@pytest.mark.parametrize("change", [{"share": 1.0}, {"salt": "ab"}])
def test_a_run_chooses_no_canaries(
    repository: Repository, models: list[Path], send: Send, change: dict[str, Any]
) -> None:
    canaries(repository)
    devices = {"share": CANARY.share, "salt": SALT, **change}
    files = {**version(repository, models[1]), **naming("canary", 2, **devices)}
    refused(repository, send("aggregator", files), "may not change which devices are canaries")


def test_canaries_get_no_version_that_is_there_already(
    repository: Repository, models: list[Path], send: Send
) -> None:
    publish(repository, models[1])
    canaries(repository)
    files = naming("canary", 2, share=CANARY.share, salt=SALT)
    refused(repository, send("aggregator", files), "name a new, whole version only")
    assert send("operator", files).status_code == 201


def test_canaries_get_no_intermediate_version(
    repository: Repository, models: list[Path], send: Send
) -> None:
    canaries(repository)
    devices = {"share": CANARY.share, "salt": SALT}
    files = {**version(repository, models[1], intermediate=True), **naming("canary", 2, **devices)}
    refused(repository, send("aggregator", files), "name a new, whole version only")


@pytest.mark.parametrize(
    ("role", "name"),
    [("aggregator", "training"), ("operator", "training"), ("operator", "canary")],
)
def test_nobody_lets_a_channel_name_an_older_version(
    repository: Repository, models: list[Path], send: Send, role: str, name: ChannelName
) -> None:
    publish(repository, models[1])
    devices = {"share": CANARY.share, "salt": SALT} if name == "canary" else {}
    canaries(repository, CANARY.model_copy(update={"version": 2}))
    send("operator", naming("training", 2))
    before = repository.read()
    answer = send(role, naming(name, 1, **devices))
    assert answer.status_code == 422, answer.text
    assert f"channel {name} names version 2 and cannot name version 1" in answer.json()["error"]
    assert repository.read() == before
