"""What devices trust in a fresh repository: thresholds, paths, lifetimes, and who may change it."""

from __future__ import annotations

import errno
import os
import pwd
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Root
from version_repository import keys_but, keys_of, publish

from fedspk.errors import FedspkError
from fedspk.proposals import RELEASE
from fedspk.signing import load_key, save_public_key
from server import operations, upkeep
from server.creation import create
from server.repository import Repository, following, now


def test_two_of_three_root_keys_and_both_parties_must_sign(repository: Repository) -> None:
    state = repository.read()
    found = {
        role: (len(each.keyids), each.threshold) for role, each in state.root.signed.roles.items()
    }
    release = state.targets.signed.get_delegated_role(RELEASE)
    found[RELEASE] = (len(release.keyids), release.threshold)
    assert found == {
        "root": (3, 2),
        "targets": (1, 1),
        "snapshot": (1, 1),
        "timestamp": (1, 1),
        RELEASE: (2, 2),
    }
    listed = [keyid for role in state.root.signed.roles.values() for keyid in role.keyids]
    assert len({*listed, *release.keyids}) == 8


def test_a_release_is_trusted_for_versions_and_channels_alone(repository: Repository) -> None:
    release = repository.read().targets.signed.get_delegated_role(RELEASE)
    for path in ("models/1/manifest.json", "gan/2/model.safetensors", "channels/stable.json"):
        assert release.is_delegated_path(path)
    for path in ("root.json", "clients/fedspk.whl", "models/1/x/y", "channels", "a/channels/b"):
        assert not release.is_delegated_path(path)
    assert release.terminating


def test_metadata_count_for_no_longer_than_stated(repository: Repository) -> None:
    days = {"root": 365, "targets": 365, RELEASE: 180, "snapshot": 14, "timestamp": 3}
    for role, metadata in repository.read().roles().items():
        left = metadata.signed.expires - now()
        assert timedelta(days=days[role], minutes=-5) < left <= timedelta(days=days[role]), role


@pytest.mark.parametrize("lacking", ["", "root-1"])
def test_a_root_needs_two_signatures(repository: Repository, lacking: str) -> None:
    state = repository.read()
    root = following(state.root, Root.type)
    signers = keys_but(repository, lacking) if lacking else keys_of(repository)
    keyids = [keyid for keyid in state.root.signed.roles[Root.type].keyids if keyid in signers]
    root.sign(signers[keyids[0]])
    with pytest.raises(FedspkError, match="not signed by enough root keys"):
        repository.commit_root(state, root, "attack", {})
    assert repository.read() == state
    root.sign(signers[keyids[1]], append=True)
    repository.commit_root(state, root, "test", {})
    assert repository.read().root.signed.version == 2


def test_old_metadata_stay_for_devices_in_the_middle_of_an_update(
    repository: Repository, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        publish(repository, models[number % 2])
    with repository.changing():  # deletes what is too old
        found = {path.name for path in repository.metadata.glob("*.snapshot.json")}
    newest = repository.read().snapshot.signed.version
    assert found == {f"{version}.snapshot.json" for version in range(1, newest + 1)}
    monkeypatch.setattr("server.repository.KEPT_METADATA", 2)
    with repository.changing():
        found = {path.name for path in repository.metadata.glob("*.snapshot.json")}
    assert found == {f"{version}.snapshot.json" for version in (newest - 1, newest)}


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_creation_that_broke_off_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    planted = tmp_path / "elsewhere"
    planted.mkdir()
    (tmp_path / ".versions.partial").symlink_to(planted)
    if how == "killed":
        (tmp_path / ".versions.0.partial" / "keys").mkdir(parents=True)
    else:
        with monkeypatch.context() as patch, pytest.raises(FedspkError, match="new folder inside"):
            patch.setattr(Path, "replace", _busy)
            create(tmp_path / "versions")
        assert not list(tmp_path.rglob("*.pem"))
    create(tmp_path / "versions")
    assert Repository(tmp_path / "versions").read().release is None
    assert not (tmp_path / "versions").is_symlink()
    assert not list(planted.iterdir())
    assert not (tmp_path / ".versions.0.partial").exists()


_replace = Path.replace


def _busy(path: Path, target: Path) -> Path:
    """Rename, but nothing over a mount point."""
    if target.name == "versions":
        raise OSError(errno.EBUSY, "Device or resource busy")
    return _replace(path, target)


def test_a_copy_of_metadata_is_left_alone(repository: Repository) -> None:
    copy = repository.metadata / "backup.root.json"
    copy.write_text("{}")
    upkeep.renew(repository, keys_of(repository))
    assert copy.exists()


def test_no_key_serves_two_parties(repository: Repository, tmp_path: Path) -> None:
    before = repository.read()
    for owner in ("release-server", "root-1"):
        key = load_key(next(repository.keys.glob(f"{owner}.*")), lambda _: b"")
        save_public_key(tmp_path / "key.pub", key.public_key)
        with pytest.raises(FedspkError, match=f"is the key of {owner}; every one has its own"):
            upkeep.rotate_party(
                repository,
                "release-aggregator",
                keys_of(repository),
                None,
                public=tmp_path / "key.pub",
            )
    assert repository.read() == before


def test_nobody_else_can_hold_the_lock(repository: Repository) -> None:
    with repository.changing():
        assert (repository.folder / "lock").stat().st_mode & 0o777 == 0o600


def test_the_audit_log_does_not_believe_the_environment(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "alice-the-auditor")
    with repository.changing() as state:
        made = operations.promotion(repository, state, 1, "canary")
        operations.publish(repository, state, made, keys_of(repository), "promote")
    assert repository.audit.entries()[-1]["who"] == pwd.getpwuid(os.getuid()).pw_name


def test_a_web_server_can_read_what_is_public(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        create(tmp_path / "versions")
    finally:
        os.umask(before)
    public = tmp_path / "versions" / "public"
    for folder in (public, public / "metadata", public / "targets"):
        assert folder.stat().st_mode & 0o777 == 0o755
