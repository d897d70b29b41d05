"""The vault: what is sealed opens where it belongs and nowhere else, and nothing lies in clear."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import toy_device
from toy_device import THRESHOLDS, ask, new_device, open_device, toy_model, voice

from clients.recogniser import Recogniser
from clients.vault import User, Vault, VaultError, from_pcm, to_pcm
from fedspk.errors import FedspkError
from fedspk.files import PARTIAL

MODEL = toy_model().model_hash


pytestmark = pytest.mark.usefixtures("quick_passphrases")


@pytest.fixture
def vault(device: Recogniser) -> Vault:
    return Vault.open(device._vault.home, toy_device.ask)


def folder_of(vault: Vault, name: str) -> Path:
    return vault.home / "users" / vault.user(name).id


def profile_of(vault: Vault, user: User) -> Path:
    return vault.home / "users" / user.id / f"{MODEL}.{user.revision}.profile"


def read_all(vault: Vault) -> None:
    vault.read_state()
    for error in vault.damaged().values():
        raise error
    for user in vault.users():
        vault.recordings(user)
        vault.profile(user, MODEL)


def test_recordings_come_back_as_they_were_stored(vault: Vault) -> None:
    kept = vault.recordings(vault.user("anna"))
    assert len(kept) == 3
    for number, audio in enumerate(kept):
        np.testing.assert_array_equal(audio, from_pcm(to_pcm(voice(0, number))))
        np.testing.assert_allclose(audio, voice(0, number), atol=1 / 65_536)


def test_a_loud_sound_is_limited_not_wrapped() -> None:
    np.testing.assert_allclose(from_pcm(to_pcm(np.array([2.0, -2.0], np.float32))), [1, -1], 1e-4)


def test_names_that_look_the_same_are_the_same(device: Recogniser, vault: Vault) -> None:
    device.enrol("Ren\u00e9", [voice(2, 0)])
    assert vault.user(" Rene\u0301 ").name == "Ren\u00e9"
    device.enrol("Rene\u0301", [voice(2, 1)])
    assert len(vault.users()) == 3


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "bell\a", 201 * "x"])
def test_a_name_must_be_one(device: Recogniser, vault: Vault, name: str) -> None:
    with pytest.raises(FedspkError, match="will not do as a user's name"):
        device.enrol(name, [voice(2, 0)])
    with vault.writing():
        assert len(vault.users()) == 2
        assert len(list((vault.home / "users").iterdir())) == 2


def test_every_altered_byte_of_every_box_is_noticed(vault: Vault) -> None:
    folder = folder_of(vault, "anna")
    boxes = [vault.home / "state.box", *folder.iterdir()]
    assert len(boxes) == 7
    for path in boxes:
        whole = path.read_bytes()
        for place in (0, 11, 12, len(whole) // 2, len(whole) - 1):
            bent = bytearray(whole)
            bent[place] ^= 1
            path.write_bytes(bent)
            with pytest.raises(VaultError, match=path.name):
                read_all(vault)
        for cut in (b"", whole[:20], whole[:-1], whole + b"\0"):
            path.write_bytes(cut)
            with pytest.raises(VaultError, match=path.name):
                read_all(vault)
        path.write_bytes(whole)
    read_all(vault)


@pytest.mark.parametrize("name", ["0.audio", "card.box", "user.key", "profile"])
def test_a_box_of_another_user_does_not_open(vault: Vault, name: str) -> None:
    anna, bert = vault.user("anna"), vault.user("bert")
    if name == "profile":
        shutil.copy(profile_of(vault, bert), profile_of(vault, anna))
    else:
        shutil.copy(folder_of(vault, "bert") / name, folder_of(vault, "anna") / name)
    with pytest.raises(VaultError, match="another device, user or model"):
        read_all(vault)


def test_even_with_the_key_a_folder_moved_to_another_user_does_not_open(vault: Vault) -> None:
    folder_of(vault, "anna").rename(vault.home / "users" / (32 * "0"))
    with pytest.raises(VaultError, match="another device, user or model"):
        vault.user("anna")


def test_recordings_do_not_change_places(vault: Vault) -> None:
    folder = folder_of(vault, "anna")
    shutil.copy(folder / "1.audio", folder / "0.audio")
    with pytest.raises(VaultError):
        vault.recordings(vault.user("anna"))


def test_a_profile_does_not_open_as_another_models_or_an_older_enrolments(
    device: Recogniser, vault: Vault
) -> None:
    user = vault.user("anna")
    old = profile_of(vault, user)
    other = toy_model(2).model_hash
    shutil.copy(old, old.with_name(f"{other}.{user.revision}.profile"))
    with pytest.raises(VaultError):
        vault.profile(user, other)
    device.enrol("anna", [voice(0, 3)])
    newer = vault.user("anna")
    shutil.copy(old, profile_of(vault, newer))
    with pytest.raises(VaultError):
        vault.profile(newer, MODEL)


def test_boxes_of_another_device_do_not_open(vault: Vault, tmp_path: Path) -> None:
    other = new_device(tmp_path / "other", "anna")._vault
    shutil.copytree(folder_of(vault, "anna"), other.home / "users" / vault.user("anna").id)
    assert list(other.damaged()) == [vault.user("anna").id]
    shutil.copy(vault.home / "state.box", other.home / "state.box")
    with pytest.raises(VaultError):
        other.read_state()


def test_the_devices_name_is_in_every_box_even_under_one_key(vault: Vault) -> None:
    renamed = Vault.open(vault.home, toy_device.ask)
    renamed.device = 32 * "0"
    with pytest.raises(VaultError):
        renamed.read_state()
    assert renamed.users() == []
    assert len(renamed.damaged()) == 2


def test_what_is_forgotten_is_gone_and_the_others_are_not(vault: Vault) -> None:
    folder = folder_of(vault, "anna")
    with vault.writing():
        vault.forget(vault.user("anna"))
    assert not folder.exists()
    assert [user.name for user in vault.users()] == ["bert"]
    read_all(vault)
    with pytest.raises(FedspkError, match="not enrolled"):
        vault.user("anna")


def test_a_backup_of_the_boxes_is_worthless_without_the_data_key(
    vault: Vault, tmp_path: Path
) -> None:
    folder = folder_of(vault, "anna")
    backup = tmp_path / "backup"
    shutil.copytree(folder, backup, ignore=shutil.ignore_patterns("user.key"))
    with vault.writing():
        vault.forget(vault.user("anna"))
    bert_key = (folder_of(vault, "bert") / "user.key").read_bytes()
    shutil.copytree(backup, folder)
    (folder / "user.key").write_bytes(bert_key)
    assert list(vault.damaged()) == [folder.name]


@pytest.mark.parametrize("name", ["card.box", "user.key"])
@pytest.mark.parametrize("how", ["altered", "missing"])
def test_one_damaged_user_is_no_trouble_for_the_others(
    device: Recogniser, vault: Vault, name: str, how: str
) -> None:
    damaged = folder_of(vault, "anna")
    (damaged / name).unlink()
    if how == "altered":
        (damaged / name).write_bytes(b"x" * 60)
    assert device.verify("bert", voice(1, 7), THRESHOLDS[1]).accepted
    device.enrol("carl", [voice(2, 0)])
    device.use_model(toy_model(2), THRESHOLDS)
    assert [user.name for user in vault.users()] == ["bert", "carl"]
    if (name, how) == ("user.key", "missing"):
        assert not damaged.exists()  # that is how an interrupted enrolment looks
        return
    assert list(vault.damaged()) == [damaged.name]
    with pytest.raises(VaultError, match=f"{name}: .*forget --user {damaged.name}"):
        vault.user("anna")
    with vault.writing():
        vault.forget_damaged(damaged.name)
    assert not damaged.exists()
    assert vault.damaged() == {}
    device.enrol("anna", [voice(0, 0)])
    assert device.verify("anna", voice(0, 7), THRESHOLDS[1]).accepted


def test_only_a_damaged_user_is_forgotten_by_id(vault: Vault) -> None:
    user = vault.user("anna")
    with vault.writing(), pytest.raises(FedspkError, match="no user of this id is damaged"):
        vault.forget_damaged(user.id)
    assert vault.user("anna") == user


@pytest.mark.parametrize("call", ["write", "pwrite"])
def test_a_full_disk_does_not_keep_a_user(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Nothing can be written anew; on some file systems not even over what is there."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = folder_of(vault, "anna")
    with vault.writing(), monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", full)
        if call == "pwrite":
            patch.setattr(os, "pwrite", full)
        vault.forget(vault.user("anna"))
    assert not folder.exists()
    assert [user.name for user in vault.users()] == ["bert"]


def test_the_key_is_overwritten_where_it_lies(vault: Vault, tmp_path: Path) -> None:
    folder, link = folder_of(vault, "anna"), tmp_path / "link"
    before = (folder / "user.key").read_bytes()
    os.link(folder / "user.key", link)
    with vault.writing():
        vault.forget(vault.user("anna"))
    after = link.read_bytes()
    assert len(after) == len(before)
    starts = range(0, len(before) - 7, 8)
    assert all(before[start : start + 8] != after[start : start + 8] for start in starts)


def test_profiles_of_former_enrolments_are_deleted(device: Recogniser, vault: Vault) -> None:
    device.enrol("anna", [voice(0, 3)])
    user = vault.user("anna")
    device.use_model(toy_model(2), THRESHOLDS)
    found = {path.name for path in folder_of(vault, "anna").glob("*.profile")}
    hashes = (MODEL, toy_model(2).model_hash)
    assert found == {f"{each}.{user.revision}.profile" for each in hashes}


def test_files_are_the_owners_alone(vault: Vault) -> None:
    assert vault.home.stat().st_mode & 0o777 == 0o700
    for path in vault.home.rglob("*"):
        assert path.is_dir() or path.stat().st_mode & 0o777 == 0o600, path


def test_nothing_in_clear_is_on_the_disk(vault: Vault) -> None:
    user = vault.user("anna")
    vector = vault.profile(user, MODEL).profile.vector
    audio = voice(0, 0)
    secrets = {
        "name": b"anna",
        "data key": user.key,
        "vault key": vault._key,
        "passphrase": toy_device.PASSPHRASE,
        "profile": vector[:4].tobytes(),
        "profile, double": vector[:4].astype(np.float64).tobytes(),
        "audio": to_pcm(audio)[8000:8032],
        "audio, float": audio[4000:4008].tobytes(),
    }
    for path in vault.home.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for what, secret in secrets.items():
            assert secret not in content, f"{what} in {path}"
            assert secret.hex().encode() not in content, f"{what} in {path}"
        assert "anna" not in path.name


def test_no_secret_is_in_what_python_prints(vault: Vault) -> None:
    user = vault.user("anna")
    printed = repr(user) + repr(vault) + repr(vault.profile(user, MODEL))
    for secret in (user.key, vault._key):
        assert secret.hex() not in printed
        assert repr(secret) not in printed


def test_a_home_holds_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a letter")
    tmp_path.chmod(0o700)
    with pytest.raises(FedspkError, match="choose an empty folder"):
        new_device(tmp_path)
    new_device(tmp_path / "home")
    with pytest.raises(FedspkError, match="device's folder already"):
        new_device(tmp_path / "home")
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(FedspkError, match="other users"):
        new_device(tmp_path / "open")


def test_what_others_are_writing_is_left_alone(vault: Vault) -> None:
    partial = vault.home / "remote" / f".timestamp.json.x{PARTIAL}"
    partial.parent.mkdir(exist_ok=True)
    partial.touch()
    leftover = vault.home / "users" / f".1.audio.x{PARTIAL}"
    leftover.touch()
    with vault.writing():
        assert partial.exists()
        assert not leftover.exists()


def test_the_passphrase_is_changed_by_one_who_writes_alone(vault: Vault) -> None:
    """Otherwise another writer would take the new key's unfinished file for a leftover."""
    changing = Thread(target=vault.change_passphrase, args=(lambda: b"another passphrase",))
    with vault.writing():
        changing.start()
        changing.join(0.3)
        assert changing.is_alive()
        assert Vault.open(vault.home, ask).device == vault.device
    changing.join()
    assert Vault.open(vault.home, lambda: b"another passphrase").device == vault.device


def test_two_writers_take_turns(device: Recogniser, vault: Vault) -> None:
    import threading

    names = [f"user {number}" for number in range(4)]
    threads = [
        threading.Thread(target=open_device(vault.home).enrol, args=(name, [voice(2, 0)]))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {user.name for user in vault.users()} == {"anna", "bert", *names}
    for name in names:
        assert open_device(vault.home).verify(name, voice(2, 5), THRESHOLDS[1]).accepted
