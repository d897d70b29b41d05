"""A device that is killed at any change of a file while it follows its server goes on after it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import following_device
import pytest
from bent_server import BentServer, bent
from following_device import USERS, init_or_update, new_follower
from toy_device import THRESHOLDS, open_device, voice
from version_repository import make_model, publish, roll_back

from clients.followed import MainServer
from clients.recogniser import Recogniser
from clients.vault_key import KEY_FILE
from server.creation import create
from server.repository import Repository

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    following_device.quickly(monkeypatch)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository whose channel stable names version 1."""
    create(tmp_path / "versions")
    repository = Repository(tmp_path / "versions")
    make_model(tmp_path / "1.safetensors", 1)
    publish(repository, tmp_path / "1.safetensors")
    return repository


@pytest.fixture
def server(repository: Repository) -> Iterator[BentServer]:
    with bent(repository.folder / "public") as served:
        yield served


def followed(server: BentServer, repository: Repository) -> MainServer:
    return MainServer(server.address, root_path(repository).read_bytes())


def root_path(repository: Repository) -> Path:
    return repository.metadata / "1.root.json"


def killed_homes(
    template: Path, work: Path, server: BentServer, repository: Repository
) -> list[Path]:
    """Return the device's folder as each kill left it, in order; the last is the whole step."""
    work.mkdir()
    program = [sys.executable, following_device.__file__]
    subprocess.run(
        [*program, template, work, server.address, root_path(repository)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    homes = sorted(work.iterdir(), key=lambda home: int(home.name))
    assert len(homes) >= 10
    return homes


def assert_serves(recogniser: Recogniser) -> None:
    for speaker, name in enumerate(USERS):
        assert recogniser.verify(name, voice(speaker, 9), THRESHOLDS[1]).accepted
        assert not recogniser.verify(name, voice(3, 9), THRESHOLDS[1]).accepted


@pytest.mark.parametrize("step", ["update", "return"])
def test_a_killed_update_leaves_the_old_version_or_the_new_one_and_is_made_up_for(
    step: str, tmp_path: Path, server: BentServer, repository: Repository
) -> None:
    template, main_server = tmp_path / "template", followed(server, repository)
    new_follower(template, main_server)
    make_model(tmp_path / "2.safetensors", 2)
    publish(repository, tmp_path / "2.safetensors")
    if step == "return":
        init_or_update(template, main_server)
        roll_back(repository, 1)
    before = open_device(template).versions.current
    homes = killed_homes(template, tmp_path / "work", server, repository)
    after = open_device(homes[-1]).versions.current
    assert after.number == (2 if step == "update" else 3)
    is_done = False
    for home in homes:
        found = open_device(home)
        current = found.versions.current
        assert current == after if is_done else current in (before, after)
        is_done = current == after
        assert_serves(found)
        init_or_update(home, main_server)
        assert open_device(home).versions.current == after
        assert_serves(open_device(home))
        assert not list((home / "remote").rglob("*.part")) + list((home / "remote").glob("model*"))
    assert is_done


def test_a_killed_init_can_be_repeated(
    tmp_path: Path, server: BentServer, repository: Repository
) -> None:
    homes = killed_homes(tmp_path / "none", tmp_path / "work", server, repository)
    for home in homes:
        if not (home / KEY_FILE).exists():
            init_or_update(home, followed(server, repository))
        assert open_device(home).versions.current.number == 1
