"""`fedspk device init --server`, `update` and `status`: what is typed, answered and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import following_device
import pytest
import toy_device
import typed_commands
from bent_server import BentServer, bent
from small_server import small_server
from version_repository import make_model, publish

from clients import registration
from clients.followed import read_check, read_server, write_registration
from clients.updater import Updater
from clients.vault import Vault
from fedspk.cli import run
from fedspk.errors import FedspkError
from server.creation import create
from server.repository import Repository

TOKEN = "fedspk-token-0123456789abcdef"


pytestmark = pytest.mark.usefixtures("quickly", "core_dumps_as_they_were")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository without a release; `1.safetensors` and `2.safetensors` lie beside it."""
    create(tmp_path / "versions")
    for seed in (1, 2):
        make_model(tmp_path / f"{seed}.safetensors", seed)
    return Repository(tmp_path / "versions")


@pytest.fixture
def init(where: list[str], server: BentServer, repository: Repository, tmp_path: Path) -> list[str]:
    """Return the command that makes a device of version 1."""
    publish(repository, tmp_path / "1.safetensors")
    root = str(repository.metadata / "1.root.json")
    return ["init", *where, "--server", server.address, "--root", root]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return typed_commands.answer(capsys, "device", *arguments)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return typed_commands.fails(capsys, "device", *arguments)


def test_a_device_is_made_updated_and_asked_how_it_is(
    capsys: pytest.CaptureFixture[str],
    init: list[str],
    where: list[str],
    server: BentServer,
    repository: Repository,
    tmp_path: Path,
) -> None:
    assert "with version 1, model" in answer(capsys, *init)
    assert "version 1, model" in answer(capsys, "update", *where)
    publish(repository, tmp_path / "2.safetensors")
    updated = json.loads(answer(capsys, "update", *where, "--json"))
    assert updated.pop("model") == repository.manifest(repository.read(), "model", 2).content_hash
    assert updated == {"version": 2, "channel": "stable", "changed": True, "re_enrolled": 0}
    found = json.loads(answer(capsys, "status", *where, "--json"))
    assert (found["version"], found["server"], found["channel"]) == (2, server.address, "stable")
    assert found["trouble"] is None
    text = answer(capsys, "status", *where)
    assert "model     version 2, model" in text
    assert "previous  version 1, model" in text
    assert f"server    {server.address}, channel stable, last looked 2" in text
    assert "trouble   " not in text
    assert "known to  nobody" in text


def test_an_update_by_hand_is_reported_and_a_server_that_is_away_is_a_warning(
    capsys: pytest.CaptureFixture[str],
    init: list[str],
    where: list[str],
    server: BentServer,
    repository: Repository,
    tmp_path: Path,
) -> None:
    answer(capsys, *init)
    vault = Vault.open(tmp_path / "home", toy_device.ask)
    with small_server(TOKEN) as main_server:
        registration.register(vault, main_server.address, TOKEN)
        publish(repository, tmp_path / "2.safetensors")
        answer(capsys, "update", *where)
        server.bend = lambda _, bent_answer: setattr(bent_answer, "status", 503)
        fails(capsys, "update", *where)
        server.bend = lambda *_: None
        told = [(each.version, each.state, each.failure) for each in main_server.reports]
    assert told == [(2, "serving", None), (2, "failed", "unreachable")]
    assert run(["device", "update", *where]) == 0
    said = capsys.readouterr()
    assert "is in use and the latest" in said.out
    assert "the report to the main server failed" in said.err


def test_a_version_that_was_left_is_not_taken_again_until_a_newer_one_comes(
    capsys: pytest.CaptureFixture[str],
    init: list[str],
    where: list[str],
    repository: Repository,
    tmp_path: Path,
) -> None:
    def version() -> int:
        return int(json.loads(answer(capsys, "status", *where, "--json"))["version"])

    def look() -> None:
        Updater(Vault.open(tmp_path / "home", toy_device.ask)).check()

    answer(capsys, *init)
    publish(repository, tmp_path / "2.safetensors")
    answer(capsys, "update", *where)
    said = answer(capsys, "use-model", "--previous", *where)
    assert "version 2 is not taken again until the server publishes a newer one" in said
    look()
    look()
    assert version() == 1
    assert "left      version 2" in answer(capsys, "status", *where)
    answer(capsys, "update", *where)
    assert version() == 2
    assert "left      " not in answer(capsys, "status", *where)
    answer(capsys, "use-model", "--previous", *where)
    publish(repository, tmp_path / "1.safetensors")
    look()
    assert version() == 3
    assert "left      " not in answer(capsys, "status", *where)


def test_a_device_follows_its_server_to_another_address(
    capsys: pytest.CaptureFixture[str],
    init: list[str],
    where: list[str],
    repository: Repository,
    tmp_path: Path,
) -> None:
    answer(capsys, *init)
    publish(repository, tmp_path / "2.safetensors")
    with bent(repository.folder / "public") as moved:
        answer(capsys, "follow", "--server", moved.address, *where)
        assert "with version 2" not in answer(capsys, "status", *where)
        answer(capsys, "update", *where)
        found = json.loads(answer(capsys, "status", *where, "--json"))
    assert (found["version"], found["server"]) == (2, moved.address)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_device_goes_to_another_server_only_with_its_root(
    capsys: pytest.CaptureFixture[str],
    init: list[str],
    where: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_killed: bool,
) -> None:
    if is_killed:  # before it deletes what it has seen of the former server
        monkeypatch.setattr("clients.updater.shutil.rmtree", lambda *_, **__: None)
    answer(capsys, *init)
    vault = Vault.open(tmp_path / "home", toy_device.ask)
    before = read_server(vault)
    create(tmp_path / "others")
    other = Repository(tmp_path / "others")
    publish(other, tmp_path / "2.safetensors")
    root = str(other.metadata / "1.root.json")
    with bent(other.folder / "public") as another:
        there = ["follow", "--server", another.address, *where]
        assert another.address in fails(capsys, *there)
        assert "cannot be read" in fails(capsys, *there, "--root", "none.json")
        assert read_server(vault) == before
        answer(capsys, "update", *where)  # what it trusted is as it was
        with vault.writing():
            write_registration(vault, "http://127.0.0.1:1")
        said = answer(capsys, *there, "--root", root)
        assert "does not know the device yet" in said
        # version 1 there is another model than version 1 here
        updated = json.loads(answer(capsys, "update", *where, "--json"))
    assert (updated["version"], updated["changed"]) == (1, True)
    assert updated["model"] == other.manifest(other.read(), "model", 1).content_hash


def test_an_offline_device_can_be_given_a_server(
    capsys: pytest.CaptureFixture[str],
    init: list[str],
    where: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clients.compiled.compile_model", following_device.quick_compile)
    answer(capsys, "init", *where, "--model", str(tmp_path / "2.safetensors"))
    there = init[init.index("--server") :]
    assert "give the server's --root" in fails(capsys, "follow", *there[:2], *where)
    answer(capsys, "follow", *there, *where)
    assert json.loads(answer(capsys, "update", *where, "--json"))["version"] == 1


def test_trouble_is_told_once_and_stands_in_the_status(
    capsys: pytest.CaptureFixture[str], init: list[str], where: list[str], server: BentServer
) -> None:
    answer(capsys, *init)
    server.bend = lambda _, bent_answer: setattr(bent_answer, "status", 503)
    assert "status 503" in fails(capsys, "update", *where)
    assert "trouble   http" in answer(capsys, "status", *where)
    failure = json.loads(answer(capsys, "status", *where, "--json"))["trouble"]
    assert (failure["failure"], failure["version"]) == ("unreachable", None)
    server.bend = lambda *_: None
    answer(capsys, "update", *where)
    assert "trouble   " not in answer(capsys, "status", *where)


def test_init_waits_for_a_published_version(
    capsys: pytest.CaptureFixture[str],
    where: list[str],
    server: BentServer,
    repository: Repository,
    tmp_path: Path,
) -> None:
    root = str(repository.metadata / "1.root.json")
    command = ["init", *where, "--server", server.address, "--root", root]
    assert "has published no version for devices yet" in fails(capsys, *command)
    publish(repository, tmp_path / "1.safetensors")
    answer(capsys, *command)
    assert "is a device's folder already" in fails(capsys, *command)


def test_an_offline_device_may_be_made_where_init_broke_off(
    capsys: pytest.CaptureFixture[str],
    init: list[str],
    where: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise FedspkError("killed.")

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "keep", die)
        assert "killed" in fails(capsys, *init)
    monkeypatch.setattr("clients.compiled.compile_model", following_device.quick_compile)
    answer(capsys, "init", *where, "--model", str(tmp_path / "1.safetensors"))
    text = answer(capsys, "status", *where)
    assert "server    none" in text
    assert "model     model " in text
    assert "follows no main server" in fails(capsys, "update", *where)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "give either --server URL"),
        (["--server", "http://127.0.0.1:1", "--model", "m"], "give either --server URL"),
        (["--server", "http://127.0.0.1:1"], "give its --root FILE"),
        (["--server", "http://127.0.0.1:1", "--root", "r", "--manifest", "m"], "no --manifest"),
        (["--model", "m", "--root", "r"], "belong to a --server"),
        (["--model", "m", "--token-file", "t"], "belong to a --server"),
        (["--server", "http://127.0.0.1:1", "--root", "none.json"], "none.json: cannot be read"),
        (["--server", "speakers", "--root", __file__], "write https://HOST:PORT"),
        (["--server", "http://127.0.0.1:1", "--root", __file__], "not root metadata"),
    ],
)
def test_init_says_what_does_not_fit_together(
    capsys: pytest.CaptureFixture[str], where: list[str], arguments: list[str], match: str
) -> None:
    assert match in fails(capsys, "init", *where, *arguments)


def test_init_registers_with_the_token_of_a_file(
    capsys: pytest.CaptureFixture[str],
    init: list[str],
    server: BentServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("a token of the operator\n")
    told: list[tuple[str, str, Path | None]] = []

    def register(_: Vault, *arguments: Any) -> None:
        told.append(arguments)

    monkeypatch.setattr(registration, "register", register)
    answer(capsys, *init, "--token-file", str(token))
    assert told == [(server.address, "a token of the operator", None)]


def test_a_device_that_could_not_be_registered_is_a_device(
    capsys: pytest.CaptureFixture[str], init: list[str], where: list[str], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("a token of the operator\n")
    sentence = fails(capsys, *init, "--token-file", str(token))
    assert "is a device now, but not registered" in sentence
    assert "a token of the operator" not in sentence
    answer(capsys, "update", *where)


def test_what_a_device_follows_is_sealed(
    capsys: pytest.CaptureFixture[str], init: list[str], server: BentServer, tmp_path: Path
) -> None:
    answer(capsys, *init)
    vault = Vault.open(tmp_path / "home", toy_device.ask)
    followed = read_server(vault)
    assert followed is not None
    assert followed.address == server.address
    assert read_check(vault) is not None
    for name in ("server", "check"):
        box = (tmp_path / "home" / f"{name}.box").read_bytes()
        assert server.address.encode() not in box
        assert b"stable" not in box
