"""A device that is killed at any change of a file while it follows its server goes on after it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import following_device
import pytest
from following_device import USERS, init_or_update, new_follower
from toy_device import THRESHOLDS, open_device, voice
from version_repository import publish, roll_back

from clients.followed import MainServer
from clients.recogniser import Recogniser
from clients.vault_key import KEY_FILE
from server.repository import Repository

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly")]


def killed_homes(
    home: Path, work: Path, followed: MainServer, repository: Repository
) -> list[Path]:
    """Return the device's folder as each kill left it, in order; the last is the whole step."""
    work.mkdir()
    program = [sys.executable, following_device.__file__]
    subprocess.run(
        [*program, home, work, followed.address, repository.metadata / "1.root.json"],
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
    step: str, tmp_path: Path, followed: MainServer, repository: Repository, models: list[Path]
) -> None:
    template = tmp_path / "template"
    new_follower(template, followed)
    publish(repository, models[1])
    if step == "return":
        init_or_update(template, followed)
        roll_back(repository, 1)
    before = open_device(template).versions.current
    homes = killed_homes(template, tmp_path / "work", followed, repository)
    after = open_device(homes[-1]).versions.current
    assert after.number == (2 if step == "update" else 3)
    is_done = False
    for home in homes:
        found = open_device(home)
        current = found.versions.current
        assert current == after if is_done else current in (before, after)
        is_done = current == after
        assert_serves(found)
        init_or_update(home, followed)
        assert open_device(home).versions.current == after
        assert_serves(open_device(home))
        assert not list((home / "remote").rglob("*.part")) + list((home / "remote").glob("model*"))
    assert is_done


def test_a_killed_init_can_be_repeated(
    tmp_path: Path, followed: MainServer, repository: Repository
) -> None:
    homes = killed_homes(tmp_path / "none", tmp_path / "work", followed, repository)
    for home in homes:
        if not (home / KEY_FILE).exists():
            init_or_update(home, followed)
        assert open_device(home).versions.current.number == 1
