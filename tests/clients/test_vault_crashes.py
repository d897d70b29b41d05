"""A device that is killed at any change of any file has its last good state, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_device
from toy_device import THRESHOLDS, new_device, open_device, take_step, toy_model, voice

from clients.recogniser import Recogniser
from fedspk.errors import FedspkError

STEPS = ["enrol", "enrol more", "use model", "return", "forget"]


pytestmark = pytest.mark.usefixtures("quick_passphrases")


def killed_homes(template: Path, work: Path, step: str) -> list[Path]:
    """Return the device's folder as each kill left it, in order; the last is the whole step."""
    work.mkdir()
    subprocess.run(
        [sys.executable, toy_device.__file__, template, work, step],
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    homes = sorted((home for home in work.iterdir()), key=lambda home: int(home.name))
    assert len(homes) >= 4
    return homes


def seen(recogniser: Recogniser) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """Return the model in use and each user with recordings and clips in the profile."""
    model_hash = recogniser.versions.current.model_hash
    vault = recogniser._vault
    users = [
        (user.name, len(user.recordings), vault.profile(user, model_hash).profile.utterances)
        for user in vault.users()
    ]
    return model_hash, tuple(users)


def assert_serves(recogniser: Recogniser) -> None:
    threshold = THRESHOLDS[1]
    for user in recogniser._vault.users():
        speaker = ["anna", "bert", "carl"].index(user.name)
        assert recogniser.verify(user.name, voice(speaker, 9), threshold).accepted
        assert not recogniser.verify(user.name, voice(3, 9), threshold).accepted


def assert_nothing_left_over(recogniser: Recogniser) -> None:
    vault = recogniser._vault
    with vault.writing():
        pass
    expected = {"vault.key", "state.box", "lock"}
    for user in vault.users():
        folder = f"users/{user.id}"
        expected |= {f"{folder}/user.key", f"{folder}/card.box"}
        expected |= {f"{folder}/{number}.audio" for number in user.recordings}
    files = {str(path.relative_to(vault.home)) for path in vault.home.rglob("*") if path.is_file()}
    assert {name for name in files if not name.endswith((".onnx", ".profile"))} == expected
    assert {path.name for path in (vault.home / "users").iterdir()} == {
        user.id for user in vault.users()
    }


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_device_is_as_before_or_as_after(step: str, tmp_path: Path) -> None:
    template = tmp_path / "template"
    recogniser = new_device(template, "anna", "bert")
    if step == "return":
        recogniser.use_model(toy_model(2), THRESHOLDS)
    before = seen(recogniser)
    homes = killed_homes(template, tmp_path / "work", step)
    after = seen(open_device(homes[-1]))
    assert before != after
    is_done = False
    for home in homes:
        found = seen(open_device(home))
        assert found == after if is_done else found in (before, after)
        is_done = found == after
        assert_serves(open_device(home))
        assert_nothing_left_over(open_device(home))
        if not is_done:
            take_step(home, step)
            assert seen(open_device(home)) == after
            assert_serves(open_device(home))
    assert is_done


def test_a_key_is_destroyed_from_the_first_change_on_that_says_so(tmp_path: Path) -> None:
    template = tmp_path / "template"
    recogniser = new_device(template, "anna")
    folder = template / "users" / recogniser._vault.user("anna").id
    key = (folder / "user.key").read_bytes()
    for home in killed_homes(template, tmp_path / "work", "forget"):
        is_there = any(key in path.read_bytes() for path in home.rglob("*") if path.is_file())
        assert is_there == bool(open_device(home)._vault.users())


def test_a_killed_init_can_be_repeated(tmp_path: Path) -> None:
    homes = killed_homes(tmp_path / "none", tmp_path / "work", "init")
    for home in homes:
        if not (home / "vault.key").exists():
            with pytest.raises(FedspkError, match="no device's folder"):
                open_device(home)
            take_step(home, "init")
        assert open_device(home)._vault.users() == []
