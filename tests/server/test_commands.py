"""`fedspk server`: what an operator types, what it leaves, and what a mistake gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typed_commands
from version_repository import write_draft

from fedspk.cli import run
from server.repository import Repository

COMMANDS = (
    "init new-key publish promote rollback sign accept versions renew rotate".split()  # noqa: SIM905
)


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """An empty repository; all keys are at hand."""
    assert run(["server", "init", str(tmp_path / "versions")]) == 0
    capsys.readouterr()
    return tmp_path / "versions"


def does(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return typed_commands.does(capsys, "server", *arguments)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return typed_commands.fails(capsys, "server", *arguments)


def published(
    capsys: pytest.CaptureFixture[str], folder: Path, model: Path, eer: float, *more: str
) -> str:
    draft = write_draft(folder.parent / "draft.json", eer)
    return does(capsys, "publish", folder, "--model", model, "--manifest", draft, *more)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    printed = " ".join(does(capsys, command, "--help").split())
    assert f"Example: fedspk server {command}" in printed


def test_the_life_of_a_version(
    capsys: pytest.CaptureFixture[str], folder: Path, models: list[Path]
) -> None:
    assert "model version 1, stable = version 1" in published(
        capsys, folder, models[0], 5.0, "--channel", "stable"
    )
    published(capsys, folder, models[1], 5.2, "--channel", "canary", "--share", "0.25")
    does(capsys, "promote", folder, 2, "--channel", "stable")
    assert "model version 3" in does(capsys, "rollback", folder, "--to", 1)
    found = json.loads(does(capsys, "versions", folder, "--json"))
    assert [each["version"] for each in found["versions"]] == [1, 2, 3]
    assert found["versions"][2]["rolled_back_to"] == 1
    assert found["channels"]["stable"]["version"] == 3
    assert found["channels"]["canary"]["version"] == 3
    assert found["channels"]["canary"]["share"] == 0.25
    assert set(found["metadata"]) == {"root", "targets", "release", "snapshot", "timestamp"}
    assert "(weights of 1)" in does(capsys, "versions", folder)
    actions = [each["action"] for each in Repository(folder).audit.entries()]
    assert actions == ["init", "publish", "publish", "promote", "rollback"]


def test_a_worse_model_needs_force_and_a_reason_that_is_recorded(
    capsys: pytest.CaptureFixture[str], folder: Path, models: list[Path]
) -> None:
    published(capsys, folder, models[0], 5.0, "--channel", "stable")
    published(capsys, folder, models[1], 5.6)
    stable = ("promote", folder, 2, "--channel", "stable")
    assert "worse by more than 0.5 points" in fails(capsys, *stable)
    assert "--force needs --reason" in fails(capsys, *stable, "--force")
    assert "--reason is for --force" in fails(capsys, *stable, "--reason", "x")
    does(capsys, *stable, "--force", "--reason", "the old one leaks")
    last = Repository(folder).audit.entries()[-1]
    assert last["forced"] == "the old one leaks"
    assert last["channels"] == {"stable": 2}


def test_rates_on_different_corpora_and_missing_ones_are_not_compared(
    capsys: pytest.CaptureFixture[str], folder: Path, models: list[Path], tmp_path: Path
) -> None:
    published(capsys, folder, models[0], 5.0, "--channel", "stable")
    published(capsys, folder, models[1], 1.0, "--channel", "training")
    draft = write_draft(tmp_path / "other.json", 1.0)
    draft.write_text(draft.read_text().replace("corpus-1", "corpus-2"))
    publish = ("publish", folder, "--model", models[1], "--manifest")
    assert "cannot be compared" in fails(capsys, *publish, draft, "--channel", "canary")
    draft.write_text("{}")
    assert "was never evaluated" in fails(capsys, *publish, draft, "--channel", "canary")
    does(capsys, *publish, draft)


def test_two_parties_sign_on_two_hosts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, models: list[Path]
) -> None:
    folder, key, proposal = tmp_path / "versions", tmp_path / "a.pem", tmp_path / "proposal"
    public = does(capsys, "new-key", key).strip()
    does(capsys, "init", folder, "--aggregator-key", public)
    assert not list((folder / "keys").glob("release-aggregator*"))
    draft = write_draft(tmp_path / "draft.json")
    publish = ("publish", folder, "--model", models[0], "--manifest", draft, "--channel", "stable")
    assert "release-aggregator" in fails(capsys, *publish)
    for number in (1, 2):
        does(capsys, *publish, "--propose", proposal)
        assert "lack 1 of 2" in fails(capsys, "accept", folder, proposal)
        sign = ["sign", proposal, "--key", key]
        if number == 1:
            assert "only the very first one does (--first)" in fails(capsys, *sign)
            sign.append("--first")
        assert f"model version {number}" in does(capsys, *sign)
        does(capsys, "accept", folder, proposal)
        assert "does not follow the present release" in fails(capsys, "accept", folder, proposal)
        shutil.rmtree(proposal)
    does(capsys, *publish, "--propose", proposal)
    does(capsys, "new-key", tmp_path / "stranger.pem")
    stranger = ("sign", proposal, "--key", tmp_path / "stranger.pem")
    assert "not signed by this key" in fails(capsys, *stranger)
    assert "it is not the first" in fails(capsys, "sign", proposal, "--key", key, "--first")
    (proposal / "base.json").unlink()
    assert "metadata version 3" in fails(capsys, "sign", proposal, "--key", key)


def test_the_aggregator_replaces_its_key_from_its_own_host(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, models: list[Path]
) -> None:
    folder, old, new = tmp_path / "versions", tmp_path / "old.pem", tmp_path / "new.pem"
    does(capsys, "init", folder, "--aggregator-key", does(capsys, "new-key", old).strip())
    draft = write_draft(tmp_path / "draft.json")
    publish = ("publish", folder, "--model", models[0], "--manifest", draft, "--key")
    does(capsys, *publish, old)
    public = does(capsys, "new-key", new).strip()
    does(capsys, "renew", folder, "--propose", tmp_path / "proposal")
    does(capsys, "sign", tmp_path / "proposal", "--key", old, "--key", new)
    rotate = ("rotate", folder, "release-aggregator", "--public", public)
    assert "release-aggregator" in fails(capsys, *rotate)
    does(capsys, *rotate, "--proposal", tmp_path / "proposal")
    assert "release-aggregator" in fails(capsys, *publish, old)
    does(capsys, *publish, new)


def test_private_keys_that_others_may_read_are_refused(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    keys = list((folder / "keys").glob("*.pem"))
    assert len(keys) == 8
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert (folder / "keys").stat().st_mode & 0o777 == 0o700
    keys[0].chmod(0o640)
    assert "others may read" in fails(capsys, "renew", folder)


def test_encrypted_keys_open_with_their_passphrase_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, secret = tmp_path / "versions", tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    does(capsys, "init", folder, "--passphrase-file", secret)
    texts = [path.read_text() for path in (folder / "keys").glob("*.pem")]
    assert all("ENCRYPTED PRIVATE KEY" in text for text in texts)
    does(capsys, "rotate", folder, "snapshot", "--passphrase-file", secret)
    texts = [path.read_text() for path in (folder / "keys").glob("*.pem")]
    assert all("ENCRYPTED PRIVATE KEY" in text for text in texts)
    assert "there is no terminal" in fails(capsys, "renew", folder)
    secret.write_text("wrong")
    assert "its passphrase is another" in fails(
        capsys, "renew", folder, "--passphrase-file", secret
    )
    secret.chmod(0o644)
    assert "others may read" in fails(capsys, "renew", folder, "--passphrase-file", secret)


def test_no_secret_is_printed_logged_or_published(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, models: list[Path]
) -> None:
    folder, secret = tmp_path / "versions", tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    option = ("--passphrase-file", secret)
    printed = does(capsys, "init", folder, *option)
    draft = write_draft(tmp_path / "draft.json")
    printed += does(capsys, "publish", folder, "--model", models[0], "--manifest", draft, *option)
    printed += does(capsys, "rotate", folder, "timestamp", *option)
    files = [each for each in folder.rglob("*") if each.is_file() and each.parent.name != "keys"]
    everything = printed.encode() + b"".join(each.read_bytes() for each in files)
    assert b"correct horse" not in everything
    assert b"PRIVATE KEY" not in everything


def test_a_rotation_without_root_keys_changes_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    away = folder.parent / "usb"
    away.mkdir()
    for path in (folder / "keys").glob("root-*"):
        shutil.move(path, away)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.name != "lock")
    assert "root-1, root-2, root-3" in fails(capsys, "rotate", folder, "timestamp")
    after = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.name != "lock")
    assert before == after
    given = [word for path in list(away.iterdir())[:2] for word in ("--key", path)]
    does(capsys, "rotate", folder, "timestamp", *given)
    assert len(list((folder / "keys").glob("timestamp.*"))) == 1


def test_mistakes_get_one_sentence(
    capsys: pytest.CaptureFixture[str], folder: Path, models: list[Path], tmp_path: Path
) -> None:
    draft = write_draft(tmp_path / "draft.json")
    publish = ("publish", folder, "--manifest", draft, "--model", models[0])
    assert "not empty" in fails(capsys, "init", folder)
    assert "is not a repository" in fails(capsys, "versions", tmp_path)
    assert "channel 'beta' is unknown" in fails(capsys, *publish, "--channel", "beta")
    assert "--share is for canary" in fails(
        capsys, *publish, "--channel", "stable", "--share", "0.1"
    )
    assert "from 0 to 1" in fails(capsys, *publish, "--channel", "canary", "--share", "7")
    assert "none is published yet" in fails(capsys, "promote", folder, 1, "--channel", "stable")
    assert "role 'boss' is unknown" in fails(capsys, "rotate", folder, "boss")
    assert "--public and --proposal are for" in fails(
        capsys, "rotate", folder, "root", "--public", draft
    )
    does(capsys, *publish, "--channel", "stable")
    assert "no channel names a later version" in fails(capsys, "rollback", folder, "--to", 1)
    assert "names version 1 already" in fails(capsys, "promote", folder, 1, "--channel", "stable")
    draft.write_text("[]")
    assert "is not a JSON object" in fails(capsys, *publish)
    draft.write_text('{"speed": 1}')
    assert "speed: Extra inputs" in fails(capsys, *publish)
    (tmp_path / "bad").write_bytes(b"bad")
    draft.write_text("{}")
    assert "is not a whole safetensors" in fails(
        capsys, "publish", folder, "--manifest", draft, "--model", tmp_path / "bad"
    )
    assert "is not an Ed25519" in _foreign_key(capsys, folder, tmp_path)


def _foreign_key(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    path = tmp_path / "ec.pem"
    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return fails(capsys, "renew", folder, "--key", path)
