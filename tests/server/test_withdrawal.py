"""A run's intermediate versions are withdrawn; nothing else ever is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from version_repository import evaluated, keys_of, make_model

from fedspk.errors import FedspkError
from fedspk.proposals import Proposal, versions
from fedspk.release import ChannelName
from server import operations
from server.creation import create
from server.repository import KEPT_METADATA, Repository, State, now


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    create(tmp_path / "versions")
    return Repository(tmp_path / "versions")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    make_model(path)
    return path


def change(repository: Repository, make: Callable[[State], Proposal]) -> State:
    with repository.changing() as state:
        proposal = make(state)
        return operations.publish(repository, state, proposal, keys_of(repository), "test")


def publish(
    repository: Repository, model: Path, channel: ChannelName = "training", **fields: Any
) -> State:
    draft = {**evaluated(5.0), **fields}
    return change(
        repository,
        lambda state: operations.publication(repository, state, model, draft, channel),
    )


def withdraw(repository: Repository, *numbers: int) -> State:
    withdrawn = [("model", number) for number in numbers]
    return change(repository, lambda state: Proposal.following(state.release, {}, now(), withdrawn))


def test_intermediate_versions_go_and_numbers_rise(repository: Repository, model: Path) -> None:
    for _ in range(3):
        publish(repository, model, intermediate=True)
    state = withdraw(repository, 1, 2)
    assert versions(state.released, "model") == [3]
    assert repository.audit.entries()[-1]["withdrawn"] == ["model 1", "model 2"]
    state = publish(repository, model)
    assert versions(state.released, "model") == [3, 4]
    with pytest.raises(FedspkError, match="there is no version 2; the newest is 4"):
        change(repository, lambda state: operations.rollback(repository, state, 2))


def test_whole_versions_and_those_that_a_channel_names_stay(
    repository: Repository, model: Path
) -> None:
    publish(repository, model, intermediate=True)
    change(repository, lambda state: operations.promotion(repository, state, 1, "canary"))
    publish(repository, model)
    before = publish(repository, model, intermediate=True)
    with pytest.raises(FedspkError, match="version 1, which channel canary names"):
        withdraw(repository, 1)
    with pytest.raises(FedspkError, match="model version 2; only a run's intermediate"):
        withdraw(repository, 2)
    assert repository.read() == before


def test_going_back_to_a_round_makes_a_whole_version(repository: Repository, model: Path) -> None:
    publish(repository, model, intermediate=True)
    publish(repository, model)
    state = change(repository, lambda state: operations.rollback(repository, state, 1))
    assert not repository.manifest(state, "model", 3).intermediate


def test_files_stay_as_long_as_devices_may_be_fetching_them(
    repository: Repository, model: Path
) -> None:
    publish(repository, model, intermediate=True)
    file = next((repository.folder / "public").rglob("models/1/*.model.safetensors"))
    publish(repository, model)
    withdraw(repository, 1)
    for _ in range(KEPT_METADATA - 2):
        change(repository, lambda state: Proposal.following(state.release, {}, now()))
        assert file.exists()
    for _ in range(2):
        change(repository, lambda state: Proposal.following(state.release, {}, now()))
    assert not file.exists()
