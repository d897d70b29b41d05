"""What a device that runs python-tuf's own client accepts and refuses, over real HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Timestamp
from version_repository import Device, expire, keys_but, keys_of, publish, roll_back

from fedspk.errors import FedspkError
from fedspk.proposals import RELEASE
from fedspk.release import model_path
from fedspk.signing import new_key, save_public_key
from server import operations, upkeep
from server import repository as repository_module
from server.creation import AGGREGATOR, SERVER
from server.operations import promotion
from server.repository import Repository, following, now

Devices = Callable[[str], Device]


def test_devices_follow_publication_promotion_and_rollback(
    repository: Repository, device: Devices, models: list[Path]
) -> None:
    kitchen = device("kitchen")
    first = kitchen.update()
    publish(repository, models[1])
    second = kitchen.update()
    assert (first.version, second.version) == (1, 2)
    assert second.parent is not None
    assert second.parent.content_hash == first.content_hash != second.content_hash
    roll_back(repository, 1)
    third = kitchen.update()
    assert (third.version, third.rolled_back_to) == (3, 1)
    assert third.content_hash == first.content_hash
    assert device("new").update().version == 3


def test_metadata_put_back_to_an_older_state_are_refused(
    repository: Repository, device: Devices, models: list[Path], tmp_path: Path
) -> None:
    kitchen = device("kitchen")
    public = repository.folder / "public"
    shutil.copytree(public, tmp_path / "old")
    publish(repository, models[1])
    kitchen.update()
    shutil.rmtree(public)
    shutil.copytree(tmp_path / "old", public)
    with pytest.raises(BadVersionNumberError):
        kitchen.update()


def test_a_frozen_timestamp_is_refused_when_it_expires(
    repository: Repository, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen = device("kitchen")
    kitchen.update()
    expire(repository, monkeypatch)
    with pytest.raises(ExpiredMetadataError):
        kitchen.update()


@pytest.mark.parametrize("damage", ["one bit", "longer", "shorter", "absent"])
def test_a_file_that_is_not_the_signed_one_is_refused(
    repository: Repository, device: Devices, damage: str
) -> None:
    path = repository.target(repository.read(), model_path("model", 1))
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[-1] ^= 1
    elif damage == "longer":
        content += b"\0"
    elif damage == "shorter":
        del content[-1]
    path.write_bytes(content)
    if damage == "absent":
        path.unlink()
    with pytest.raises((RepositoryError, DownloadError)):
        device("kitchen").update()


@pytest.mark.parametrize("party", [AGGREGATOR, SERVER])
def test_a_release_with_one_of_two_signatures_is_refused(
    repository: Repository,
    device: Devices,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    party: str,
) -> None:
    """One party and the online keys are in the wrong hands."""
    publish(repository, models[1])
    kitchen = device("kitchen")
    kitchen.update()
    signers = keys_but(repository, party)
    with repository.changing() as state:
        proposal = promotion(repository, state, 1, "stable")
        listed = state.targets.signed.get_delegated_role(RELEASE).keyids
        proposal.sign(signers[keyid] for keyid in listed if keyid in signers)
        assert len(proposal.release.signatures) == 1
        monkeypatch.setattr(Repository, "check_signatures", lambda *_: None)
        repository.commit(state, signers, "attack", files=proposal.files, release=proposal.release)
    with pytest.raises(UnsignedMetadataError):
        kitchen.update()


def test_the_server_itself_publishes_nothing_that_one_party_signed(
    repository: Repository, models: list[Path]
) -> None:
    publish(repository, models[1])
    before = repository.read()
    with (
        repository.changing() as state,
        pytest.raises(FedspkError, match=r"lack 1 of 2.*release-aggregator"),
    ):
        proposal = promotion(repository, state, 1, "canary")
        operations.publish(repository, state, proposal, keys_but(repository, AGGREGATOR), "promote")
    assert repository.read().timestamp.signed == before.timestamp.signed


def test_an_old_device_follows_through_the_rotation_of_every_key(
    repository: Repository, device: Devices, models: list[Path]
) -> None:
    kitchen, asleep = device("kitchen"), device("asleep")
    kitchen.update()
    asleep.update()
    for role in ("timestamp", "snapshot", "targets"):
        upkeep.rotate_role(repository, role, keys_of(repository), None)
        assert kitchen.update().version == 1
    for party in (AGGREGATOR, SERVER):
        upkeep.rotate_party(repository, party, keys_of(repository), None)
        assert kitchen.update().version == 1
    upkeep.rotate_root(repository, keys_of(repository), None)
    publish(repository, models[1])
    assert kitchen.update().version == 2
    assert asleep.update().version == 2
    assert device("new").update().version == 2


def test_a_replaced_key_signs_nothing_any_more(
    repository: Repository, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    stolen = keys_of(repository)
    upkeep.rotate_role(repository, "timestamp", stolen, None)
    kitchen = device("kitchen")
    kitchen.update()
    state = repository.read()
    forged = following(state.timestamp, Timestamp.type)
    old = next(each for keyid, each in stolen.items() if keyid not in keys_of(repository))
    forged.sign(old)
    (repository.metadata / "timestamp.json").write_bytes(forged.to_bytes())
    with pytest.raises(UnsignedMetadataError):
        kitchen.update()


def test_metadata_are_signed_again_when_half_of_their_life_is_over(
    repository: Repository, device: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = upkeep.renew(repository, keys_of(repository))
    assert [each.role for each in renewed if each.renewed] == ["timestamp"]
    later = now() + timedelta(days=200)
    monkeypatch.setattr(upkeep, "now", lambda: later)
    monkeypatch.setattr(repository_module, "now", lambda: later)
    renewed = upkeep.renew(repository, keys_of(repository))
    assert all(each.renewed for each in renewed)
    assert device("kitchen").update().version == 1


def test_roles_whose_keys_are_away_are_told_and_left(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in [*repository.keys.glob("root-*"), *repository.keys.glob("targets*")]:
        path.unlink()
    later = now() + timedelta(days=200)
    monkeypatch.setattr(upkeep, "now", lambda: later)
    lacking = {each.role: each for each in upkeep.renew(repository, keys_of(repository))}
    assert not lacking["root"].renewed
    assert "root-1, root-2, root-3" in lacking["root"].lacking
    assert "targets" in lacking["targets"].lacking
    assert lacking["release"].renewed
    assert lacking["timestamp"].renewed


def test_a_party_on_another_host_can_rotate_its_key(
    repository: Repository, device: Devices, tmp_path: Path
) -> None:
    kitchen = device("kitchen")
    kitchen.update()
    fresh = new_key("fresh")
    save_public_key(tmp_path / "fresh.pub", fresh.public_key)
    for path in repository.keys.glob(f"{AGGREGATOR}.*"):
        path.unlink()
    proposal = upkeep.renewal(repository.read())
    proposal.sign([fresh])
    upkeep.rotate_party(
        repository, AGGREGATOR, keys_of(repository), None, tmp_path / "fresh.pub", proposal
    )
    assert kitchen.update().version == 1
    role = repository.read().targets.signed.get_delegated_role(RELEASE)
    assert fresh.public_key.keyid in role.keyids
    assert len(role.keyids) == role.threshold == 2


def test_the_repository_reads_no_metadata_that_somebody_altered(repository: Repository) -> None:
    path = repository.metadata / "timestamp.json"
    altered = path.read_bytes().replace(b'"expires":"2', b'"expires":"3')
    assert altered != path.read_bytes()
    path.write_bytes(altered)
    with pytest.raises(FedspkError, match="timestamp metadata are not valid"):
        repository.read()
