"""Where the vault's key comes from, and that nothing but a passphrase or a safe keyring will do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from clients.vault_key import (
    VaultKey,
    default_protection,
    load_key,
    new_key,
    passphrase_source,
    save_key,
)
from fedspk.errors import FedspkError

PASSPHRASE = b"correct horse battery"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def kept(home: Path) -> VaultKey:
    key = new_key()
    save_key(home, key, "passphrase", lambda: PASSPHRASE)
    return key


def no_passphrase() -> bytes:
    raise AssertionError("nobody should be asked")


class FakeKeyring:
    """A keyring that holds what it is given, in memory."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def set_password(self, service: str, name: str, secret: str) -> None:
        self.held[service, name] = secret

    def get_password(self, service: str, name: str) -> str | None:
        return self.held.get((service, name))


class LockedKeyring(FakeKeyring):
    def get_password(self, *_: str) -> str | None:
        raise RuntimeError("the collection is locked")


@pytest.fixture
def use_keyring(monkeypatch: pytest.MonkeyPatch) -> Any:
    keyring = pytest.importorskip("keyring")

    def use(found: FakeKeyring, module: str = "keyring.backends.SecretService") -> FakeKeyring:
        monkeypatch.setattr(type(found), "__module__", module)
        monkeypatch.setattr(keyring, "get_keyring", lambda: found)
        return found

    return use


def test_the_key_comes_back_for_its_passphrase_alone(home: Path, kept: VaultKey) -> None:
    assert load_key(home, lambda: PASSPHRASE) == kept
    assert (home / "vault.key").stat().st_mode & 0o777 == 0o600
    for wrong in (b"", b"correct horse batterY", PASSPHRASE + b"\0"):
        with pytest.raises(FedspkError, match="passphrase is wrong"):
            load_key(home, lambda wrong=wrong: wrong)


def test_neither_the_key_nor_the_passphrase_is_in_the_file(home: Path, kept: VaultKey) -> None:
    text = (home / "vault.key").read_bytes()
    assert PASSPHRASE not in text
    assert kept.key not in text
    assert kept.key.hex().encode() not in text
    assert kept.key.hex() not in repr(kept)


def test_an_altered_key_file_is_refused(home: Path, kept: VaultKey) -> None:
    path = home / "vault.key"
    content = json.loads(path.read_text())
    other = save_other(home.parent)
    changes: list[dict[str, object]] = [
        {"device": 32 * "0"},
        {"salt": 32 * "0"},
        {"salt": ""},
        {"box": other["box"]},
        {"box": ""},
        {"box": 5},
        {"format": 2},
        {"protection": "none"},
    ]
    for change in changes:
        path.write_text(json.dumps(content | change))
        with pytest.raises(FedspkError, match=r"altered|damaged"):
            load_key(home, lambda: PASSPHRASE)
    for text in ("", "[]", "null", "{}", json.dumps(content)[:-9]):
        path.write_text(text)
        with pytest.raises(FedspkError, match=r"damaged|not valid JSON"):
            load_key(home, lambda: PASSPHRASE)


def save_other(folder: Path) -> dict[str, Any]:
    save_key(folder, new_key(), "passphrase", lambda: PASSPHRASE)
    content: dict[str, Any] = json.loads((folder / "vault.key").read_text())
    return content


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o601])
def test_a_vault_that_others_may_read_is_refused(home: Path, kept: VaultKey, mode: int) -> None:
    (home / "vault.key").chmod(mode)
    with pytest.raises(FedspkError, match="other users"):
        load_key(home, no_passphrase)
    (home / "vault.key").chmod(0o600)
    home.chmod(0o711)
    with pytest.raises(FedspkError, match="other users"):
        load_key(home, no_passphrase)


def test_a_short_passphrase_is_refused_and_nothing_written(home: Path) -> None:
    with pytest.raises(FedspkError, match="too short"):
        save_key(home, new_key(), "passphrase", lambda: b"1234567")
    assert list(home.iterdir()) == []


def test_a_passphrase_file_must_be_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(PASSPHRASE + b"\nsecond line\n")
    file.chmod(0o600)
    assert passphrase_source(file)() == PASSPHRASE
    file.chmod(0o640)
    with pytest.raises(FedspkError, match="other users"):
        passphrase_source(file)()
    with pytest.raises(FedspkError, match="cannot be read"):
        passphrase_source(tmp_path / "none")()


def test_systemds_credential_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credential = tmp_path / "fedspk-vault"
    credential.write_bytes(PASSPHRASE)
    credential.chmod(0o440)  # as systemd shows a credential that an access list grants
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert passphrase_source(None)() == PASSPHRASE
    credential.chmod(0o444)
    with pytest.raises(FedspkError, match="other users"):
        passphrase_source(None)()


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Path(os.devnull).open())  # noqa: SIM115
    with pytest.raises(FedspkError, match="--passphrase-file"):
        passphrase_source(None)()


def test_a_new_passphrase_is_typed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["one passphrase", "one passphrase", "one passphrase", "another"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))
    assert passphrase_source(None, twice=True)() == b"one passphrase"
    with pytest.raises(FedspkError, match="differ"):
        passphrase_source(None, twice=True)()


def test_a_safe_keyring_keeps_the_key(home: Path, use_keyring: Any) -> None:
    found = use_keyring(FakeKeyring())
    assert default_protection() == "keyring"
    key = new_key()
    save_key(home, key, "keyring", no_passphrase)
    assert key.key.hex() not in (home / "vault.key").read_text()
    assert load_key(home, no_passphrase) == key
    found.held.clear()
    with pytest.raises(FedspkError, match="does not have this device's vault key"):
        load_key(home, no_passphrase)


@pytest.mark.parametrize("module", ["keyrings.alt.file", "keyring.backends.fail", "somebody.s"])
def test_a_keyring_that_may_write_plain_files_is_refused(
    home: Path, use_keyring: Any, module: str
) -> None:
    use_keyring(FakeKeyring(), module)
    assert default_protection() == "passphrase"
    with pytest.raises(FedspkError, match="not known to encrypt"):
        save_key(home, new_key(), "keyring", no_passphrase)
    assert list(home.iterdir()) == []


def test_a_chain_is_as_safe_as_its_worst_keyring(home: Path, use_keyring: Any) -> None:
    class Chain(FakeKeyring):
        backends = (FakeKeyring(), LockedKeyring())

    use_keyring(Chain())
    with pytest.raises(FedspkError, match="not known to encrypt"):
        save_key(home, new_key(), "keyring", no_passphrase)


def test_a_locked_keyring_is_one_sentence(home: Path, use_keyring: Any) -> None:
    save_in = use_keyring(FakeKeyring())
    save_key(home, new_key(), "keyring", no_passphrase)
    use_keyring(LockedKeyring())
    with pytest.raises(FedspkError, match="collection is locked"):
        load_key(home, no_passphrase)
    assert save_in.held


def test_without_the_package_there_is_no_keyring(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert default_protection() == "passphrase"
    with pytest.raises(FedspkError, match=r"fedspk\[keyring\]"):
        save_key(home, new_key(), "keyring", no_passphrase)


def test_a_vault_of_another_user_is_not_opened(
    home: Path, kept: VaultKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_key(home, lambda: PASSPHRASE) == kept
    owner = home.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # root may own what others use
        for path in (home, *home.iterdir()):
            os.chown(path, 12345, -1)
    with pytest.raises(FedspkError, match="belongs to another user"):
        load_key(home, lambda: PASSPHRASE)
