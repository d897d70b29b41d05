"""A run against invented impostors: what it begins from, and what it must be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_federation
from handing_over import Parties, parties, run_app
from tiny_federation import BINS, FRAMES, tiny_config
from tiny_generator import make_generator
from version_repository import publish_generator

from clients.dataset import DeviceDataset
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.files import read_json
from fedspk.remote import GeneratorNotPublishedError
from fedspk.rounds import RunConfig
from fedspk.run_model import initial_vector
from fedspk.weights import WeightStore
from gan.invented import file_hash, with_invented_classes
from server.keyring import at_hand

FRONT_END = FrontEndConfig(frames=FRAMES, bins=BINS)


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    return make_generator(tmp_path / "generator.safetensors", front_end=FRONT_END)


@pytest.fixture
def config(generator: Path) -> RunConfig:
    return tiny_config(
        impostors="gan",
        generator=file_hash(generator),
        rounds=1,
        share_statistics=True,
        update_transport="message",
    )


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Parties]:
    with parties(tmp_path / "server") as found:
        yield found


def start_of(folder: Path) -> str:
    """Return the hash of the model that a run started from."""
    return str(read_json(folder / "checkpoints" / "checkpoint.json")["state"]["initial"])


def test_a_run_begins_with_trained_classes_and_goes_on_from_the_same(
    tmp_path: Path, generator: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inventive_fleet(folder: Path, devices: int) -> list[Path]:
        paths = tiny_federation.tiny_fleet(folder, devices)
        for path in paths:
            replace(DeviceDataset.open(path), generator=generator).save(path)
        return paths

    monkeypatch.setattr("handing_over.tiny_fleet", inventive_fleet)
    settings = {"generator": str(generator)}
    run_app(tmp_path / "run", config, settings, {}, 2)
    expected = with_invented_classes(initial_vector(config), config, generator)
    assert start_of(tmp_path / "run") == WeightStore(tmp_path / "store").put(expected)
    run_app(tmp_path / "run", config.changed(rounds=2), {}, {}, 2)
    state = read_json(tmp_path / "run" / "checkpoints" / "checkpoint.json")["state"]
    assert [record["failure"] for record in state["history"]] == [None, None, None]


def test_a_generator_that_devices_cannot_fetch_ends_a_run_before_it_begins(
    both: Parties, tmp_path: Path, generator: Path, config: RunConfig
) -> None:
    settings = {**both.run_config(), "generator": str(generator)}
    with pytest.raises(GeneratorNotPublishedError, match="publishes none"):
        run_app(tmp_path / "run", config, settings, {}, 2)
    longer = replace(FRONT_END, window_s=0.04)
    other = make_generator(tmp_path / "other.safetensors", front_end=longer)
    signers = at_hand(both.repository.keys, [both.key], None)
    deaf = config.changed(generator=publish_generator(both.repository, other, signers))
    with pytest.raises(FedspkError, match="use a generator trained with the encoder's front end"):
        run_app(tmp_path / "deaf", deaf, both.run_config(), {}, 2)
    assert both.numbers() == []


def test_a_run_that_invents_must_be_told_what(tmp_path: Path, config: RunConfig) -> None:
    for change in ({"generator": ""}, {"public": 0}):
        with pytest.raises(FedspkError, match=r"set generator to the SHA-256 .* and public to"):
            run_app(tmp_path / "run", config.changed(**change), {}, {}, 2)
    with pytest.raises(FedspkError, match="neither a generator nor a server"):
        run_app(tmp_path / "run", config, {}, {}, 2)
