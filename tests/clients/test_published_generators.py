"""A device without others' speech trains against the voices of a published generator."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from bent_server import Answer, BentServer
from handing_over import Parties, parties
from sounds import write_speakers
from tiny_federation import BINS, FRAMES, tiny_config
from tiny_generator import make_generator
from toy_device import new_device
from version_repository import DESCRIPTION, publish_generator, root_of

from aggregator.server_app import app
from clients.dataset import DeviceDataset
from clients.enrolment import IDENTITY_FILE
from clients.followed import MainServer, write_server
from clients.impostors import impostor_source
from clients.memory_folder import memory_folder
from clients.model_source import ModelSource
from clients.supernode import Federation, run_supernode
from clients.vault import Vault
from clients.voice_dataset import write_dataset
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.files import write_text
from fedspk.remote import GeneratorNotPublishedError, VersionsRefused
from fedspk.rounds import RunConfig
from fedspk.secagg.keys import DeviceRegister
from gan.invented import file_hash
from server.keyring import at_hand
from server.repository import Repository
from simulations.executors import SerialExecutor
from simulations.grid import LocalGrid

FRONT_END = FrontEndConfig(frames=FRAMES, bins=BINS)


def run_with(generator: str, **changes: object) -> RunConfig:
    return tiny_config(impostors="gan", generator=generator, **changes)


@pytest.fixture
def source(tmp_path: Path, server: BentServer, repository: Repository) -> ModelSource:
    """Where a device has generators from."""
    (tmp_path / "root.json").write_bytes(root_of(repository))
    return ModelSource(server.address, tmp_path / "device", tmp_path / "root.json")


@pytest.fixture
def generators(tmp_path: Path) -> list[Path]:
    return [make_generator(tmp_path / f"{seed}.safetensors", seed, FRONT_END) for seed in (1, 2)]


def test_the_generator_that_a_run_names_is_fetched_once_though_a_newer_one_is_published(
    source: ModelSource, server: BentServer, repository: Repository, generators: list[Path]
) -> None:
    first, second = (publish_generator(repository, generator) for generator in generators)
    path = source.generator(run_with(first))
    assert path.read_bytes() == generators[0].read_bytes()
    asked = len(server.requests)
    assert source.generator(run_with(first)) == path
    assert len(server.requests) == asked
    assert source.generator(run_with(second)).read_bytes() == generators[1].read_bytes()


def test_a_generator_that_is_published_while_a_device_runs_is_found(
    source: ModelSource, repository: Repository, generators: list[Path]
) -> None:
    run = run_with(file_hash(generators[0]))
    with pytest.raises(GeneratorNotPublishedError, match=r"publishes none, and not .* publish DIR"):
        source.generator(run)
    publish_generator(repository, generators[1])
    with pytest.raises(GeneratorNotPublishedError, match="publishes 1 impostor generators"):
        source.generator(run)
    publish_generator(repository, generators[0])
    assert file_hash(source.generator(run)) == run.generator


def test_a_generator_that_was_torn_is_fetched_anew(
    source: ModelSource, repository: Repository, generators: list[Path]
) -> None:
    run = run_with(publish_generator(repository, generators[0]))
    path = source.generator(run)
    path.write_bytes(path.read_bytes()[:-4])
    assert file_hash(source.generator(run)) == run.generator


def test_a_damaged_generator_is_refused(
    source: ModelSource, server: BentServer, repository: Repository, generators: list[Path]
) -> None:
    run = run_with(publish_generator(repository, generators[0]))

    def flip(path: str, answer: Answer) -> None:
        if path.startswith("/targets/gan/") and path.endswith("model.safetensors"):
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])

    server.bend = flip
    with pytest.raises(VersionsRefused, match="is not the file that was signed"):
        source.generator(run)


def test_a_generator_for_another_front_end_is_refused(
    source: ModelSource, repository: Repository, tmp_path: Path
) -> None:
    longer = replace(FRONT_END, window_s=0.04)  # patches of the same size
    other = make_generator(tmp_path / "other.safetensors", front_end=longer)
    run = run_with(publish_generator(repository, other))
    with pytest.raises(FedspkError, match="use a generator trained with the encoder's front end"):
        source.generator(run)


@pytest.fixture
def follower(tmp_path: Path, server: BentServer, repository: Repository) -> Vault:
    """The vault of a device that follows the repository's server."""
    vault = new_device(tmp_path / "home", "anna")._vault
    write_server(vault, MainServer(server.address, root_of(repository)))
    return vault


@pytest.mark.usefixtures("quick_passphrases")
def test_a_device_with_neither_speech_nor_a_fitting_generator_is_told_what_to_do(
    follower: Vault, repository: Repository, tmp_path: Path, generators: list[Path]
) -> None:
    federation, stop = Federation("127.0.0.1:9", tmp_path / "register.json"), threading.Event()
    with pytest.raises(FedspkError, match=r"no impostor generator is published; .* --impostors"):
        run_supernode(follower, "anna", None, federation, stop)
    publish_generator(repository, generators[0])
    with pytest.raises(FedspkError, match="none of its impostor generators makes what the model"):
        run_supernode(follower, "anna", None, federation, stop)


@pytest.mark.usefixtures("quick_passphrases")
def test_a_run_does_not_say_where_a_device_writes(
    follower: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_speakers(tmp_path / "others", speakers=2, utterances=3)
    stores: list[bool] = []

    def note(_command: list[str], folder: Path, _stop: threading.Event) -> None:
        settings = tomllib.loads((folder / "node.toml").read_text())
        stores.append(Path(settings["store"]).is_relative_to(folder))

    monkeypatch.setattr("clients.supernode._run", note)
    federation = Federation("127.0.0.1:9", tmp_path / "register.json")
    run_supernode(follower, "anna", tmp_path / "others", federation, threading.Event())
    assert stores == [True]


@pytest.mark.usefixtures("quick_passphrases")
def test_a_published_generator_stands_in_for_a_folder_of_speech(
    follower: Vault, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_generator(
        repository, make_generator(tmp_path / "g.safetensors", front_end=DESCRIPTION.front_end)
    )
    started: list[DeviceDataset] = []

    def note(_command: list[str], folder: Path, _stop: threading.Event) -> None:
        started.append(DeviceDataset.open(folder / "device.json"))

    monkeypatch.setattr("clients.supernode._run", note)
    federation = Federation("127.0.0.1:9", tmp_path / "register.json")
    run_supernode(follower, "anna", None, federation, threading.Event())
    (dataset,) = started
    assert dataset.owner_train and not dataset.impostors
    with pytest.raises(FedspkError, match="has no impostors' speech, which the run asks for"):
        impostor_source(tiny_config(impostors="speech"), dataset)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Parties]:
    with parties(tmp_path / "server") as found:
        yield found


@pytest.mark.parametrize("head", ["softmax", "binary"])
@pytest.mark.usefixtures("quick_passphrases")
def test_vaults_train_against_a_published_generator_and_nobody_else_s_speech(
    both: Parties, tmp_path: Path, head: str
) -> None:
    front_end = DESCRIPTION.front_end
    seeds = (1, 2)  # of generators; no run names the later one
    signers = at_hand(both.repository.keys, [both.key], None)
    hashes = [
        publish_generator(
            both.repository, make_generator(tmp_path / f"{s}.st", s, front_end), signers
        )
        for s in seeds
    ]
    config = run_with(
        hashes[0],
        head_kind=head,
        frames=front_end.frames,
        bins=front_end.bins,
        share_statistics=True,
        update_transport="message",
        rounds=1,
    )
    write_text(tmp_path / "config.json", config.to_json())
    with ExitStack() as folders:
        nodes, keys = [], {}
        for name in ("kitchen", "hall"):
            vault = new_device(tmp_path / name, "anna")._vault
            folder = folders.enter_context(memory_folder())
            device = write_dataset(vault, "anna", None, front_end, folder)
            vault.identity().save(device.with_suffix("") / IDENTITY_FILE)
            keys[vault.device] = vault.identity().public
            node = {"device": str(device), "register": str(tmp_path / "register.json")}
            server = {"server": both.address, "server-root": str(both.root)}
            nodes.append({**node, **server, "minimum-cohort": 2})
        DeviceRegister(keys).save(tmp_path / "register.json")
        settings = {
            **both.run_config(),
            "config": str(tmp_path / "config.json"),
            "register": str(tmp_path / "register.json"),
            "store": str(tmp_path / "store"),
            "checkpoints": str(tmp_path / "checkpoints"),
        }
        grid = LocalGrid("clients.client_app:app", nodes, SerialExecutor(), run_config=settings)
        grid.run_server_app(app)
        for node in nodes:
            (kept,) = Path(str(node["device"])).parent.rglob("generators/*")
            assert kept.stem == hashes[0]
    trained = both.manifest(2).training
    assert trained is not None and (trained.round, trained.survivors) == (1, 2)
