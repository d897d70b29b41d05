"""A device's identity, and how its main server comes to know it."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy_device
from small_server import small_server
from toy_device import PASSPHRASE, new_device, open_device

from clients.followed import MainServer, registered_with, write_registration, write_server
from clients.registration import link_of, register
from clients.server_link import ServerRefusedError
from clients.vault import Vault, VaultError
from clients.vault_key import load_key
from fedspk.cli import run
from fedspk.connection import VersionsUnreachable
from fedspk.errors import FedspkError
from fedspk.secagg.keys import DeviceRegister

TOKEN = "fedspk-token-0123456789abcdef"


pytestmark = pytest.mark.usefixtures("quick_passphrases")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return new_device(tmp_path / "home")._vault


def private_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_the_identity_stays_the_same_and_is_the_devices_own(vault: Vault, tmp_path: Path) -> None:
    identity = vault.identity()
    assert identity.device == vault.device
    assert Vault.open(vault.home, toy_device.ask).identity().public == identity.public
    other = new_device(tmp_path / "other")._vault.identity()
    assert other.public != identity.public
    DeviceRegister({vault.device: identity.public}).verify(
        vault.device, b"message", identity.sign(b"message")
    )


def test_the_private_key_lies_in_no_file(vault: Vault) -> None:
    private = vault.identity()._key.private_bytes_raw()
    for path in vault.home.rglob("*"):
        if path.is_file():
            assert private not in path.read_bytes()
            assert private.hex().encode() not in path.read_bytes()


def test_the_server_learns_the_devices_key(vault: Vault) -> None:
    with small_server(TOKEN) as server:
        register(vault, server.address, f"{TOKEN}\n")
        assert server.keys == {vault.device: vault.identity().public}
        assert registered_with(open_device(vault.home)._vault) == server.address


def test_a_registration_whose_answer_was_lost_is_repeated(vault: Vault) -> None:
    with small_server(TOKEN) as server:
        server.answers.append((201, b""))
        with pytest.raises(VersionsUnreachable, match=server.address):
            register(vault, server.address, TOKEN)
        assert vault.device in server.keys
        assert registered_with(vault) is None
        register(vault, server.address, TOKEN)
        assert registered_with(vault) == server.address


def test_a_token_is_good_for_one_device(vault: Vault, tmp_path: Path) -> None:
    other = new_device(tmp_path / "other")._vault
    with small_server(TOKEN) as server:
        register(vault, server.address, TOKEN)
        with pytest.raises(ServerRefusedError, match="was used") as refused:
            register(other, server.address, TOKEN)
    assert refused.value.status == 403
    assert registered_with(other) is None


@pytest.mark.parametrize("token", ["", "short", 129 * "x"])
def test_what_is_no_token_is_not_sent_and_not_shown(vault: Vault, token: str) -> None:
    with small_server() as server, pytest.raises(FedspkError, match="no token of") as refused:
        register(vault, server.address, token)
    assert not token or token not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, b'{"error": "revoked\\u001b[31m\\nby anna."}', "revoked [31m by anna."),
        (403, b"<html>", "HTTP 403."),
        (403, b'["error"]', "HTTP 403."),
        (302, b"{}", "HTTP 302."),
        (403, b'{"error": "' + 1000 * b"x" + b'"}', "x."),
    ],
)
def test_whatever_the_server_says_becomes_one_sentence(
    vault: Vault, status: int, body: bytes, said: str
) -> None:
    with small_server(TOKEN) as server:
        server.answers.append((status, body))
        with pytest.raises(ServerRefusedError) as refused:
            register(vault, server.address, TOKEN)
    assert str(refused.value).endswith(said)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_a_server_that_is_away_or_at_fault_is_worth_another_try(vault: Vault) -> None:
    with small_server(TOKEN) as server:
        server.answers.append((503, b"{}"))
        with pytest.raises(VersionsUnreachable, match="HTTP 503"):
            register(vault, server.address, TOKEN)
    with pytest.raises(VersionsUnreachable, match="no connection"):
        register(vault, server.address, TOKEN)


def test_the_note_of_the_registration_is_sealed(vault: Vault, tmp_path: Path) -> None:
    write_registration(vault, "https://example.org")
    note = (vault.home / "registration.box").read_bytes()
    assert b"example" not in note
    other = new_device(tmp_path / "other")._vault
    (other.home / "registration.box").write_bytes(note)
    with pytest.raises(VaultError):
        other.read_note("registration")


def test_a_registration_that_does_not_open_is_made_anew(
    vault: Vault, caplog: pytest.LogCaptureFixture
) -> None:
    write_registration(vault, "https://example.org")
    (vault.home / "registration.box").write_bytes(b"x" * 100)
    assert registered_with(vault) is None
    assert "not registered" in caplog.text
    with small_server(TOKEN) as server:
        register(vault, server.address, TOKEN)
        assert registered_with(vault) == server.address


def test_a_registration_counts_for_the_root_that_was_followed(vault: Vault) -> None:
    write_server(vault, MainServer("https://one.example.org", b"one"))
    write_registration(vault, "https://one.example.org")
    write_server(vault, MainServer("https://two.example.org", b"two"))
    assert registered_with(vault) is None
    assert link_of(vault) is None
    write_server(vault, MainServer("https://three.example.org", b"one"))
    assert registered_with(vault) == "https://one.example.org"


def test_an_unregistered_device_has_no_link(vault: Vault) -> None:
    assert link_of(vault) is None
    write_registration(vault, "https://example.org")
    assert link_of(vault) is not None


def test_register_at_the_command_line(
    capsys: pytest.CaptureFixture[str], vault: Vault, where: list[str], tmp_path: Path
) -> None:
    token = private_file(tmp_path / "token", TOKEN.encode() + b"\n")
    command = ["device", "register", *where, "--token-file", str(token)]
    assert run(command) == 2
    assert "follows no main server" in capsys.readouterr().err
    with small_server(TOKEN) as server:
        write_server(vault, MainServer(server.address, b"{}"))
        token.chmod(0o644)
        assert run(command) == 2
        assert "other users" in capsys.readouterr().err
        assert not server.keys
        token.chmod(0o600)
        assert run(command) == 0
        assert vault.device in server.keys
        assert [each.state for each in server.reports] == ["serving"]
    said = capsys.readouterr()
    assert "is registered with" in said.out
    assert TOKEN not in said.out + said.err


def test_the_passphrase_is_changed_and_the_vault_is_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    vault = new_device(tmp_path / "home", "anna")._vault
    key = load_key(vault.home, toy_device.ask)
    old = private_file(tmp_path / "old", PASSPHRASE)
    new = private_file(tmp_path / "new", b"another passphrase\r\n")
    where = ["--home", str(vault.home), "--passphrase-file", str(old)]
    command = ["device", "change-passphrase", *where, "--new-passphrase-file", str(new)]
    assert run(command) == 0
    assert load_key(vault.home, lambda: b"another passphrase") == key
    assert (vault.home / "vault.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FedspkError, match="passphrase is wrong"):
        load_key(vault.home, toy_device.ask)
    capsys.readouterr()
    assert run(command) == 2
    assert "passphrase is wrong" in capsys.readouterr().err


def test_a_new_passphrase_that_will_not_do_leaves_the_old_one(vault: Vault) -> None:
    with pytest.raises(FedspkError, match="too short"):
        vault.change_passphrase(lambda: b"short")
    assert load_key(vault.home, toy_device.ask).device == vault.device
