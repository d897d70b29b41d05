"""Two parties, two hosts: what one proposes, the other checks before it signs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from broken_proposals import BROKEN, NOW, second_version, version_files
from version_repository import make_model

from fedspk.errors import FedspkError
from fedspk.proposals import Proposal, versions
from fedspk.release import manifest_path
from fedspk.signing import new_key


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    make_model(path)
    return path


def following(model: Path) -> Proposal:
    """Return a proposal of version 2 after version 1."""
    return second_version(Proposal.following(None, version_files(model, 1), NOW), model)


def test_a_proposal_survives_its_folder_and_collects_signatures(
    model: Path, tmp_path: Path
) -> None:
    ours, theirs = new_key("server"), new_key("aggregator")
    first = Proposal.following(None, version_files(model, 1), NOW)
    first.sign([ours, theirs])
    made = Proposal.following(first.release, version_files(model, 2), NOW)
    made.sign([theirs])
    made.write(tmp_path / "proposal")
    found = Proposal.read(tmp_path / "proposal")
    found.check()
    found.check_base([ours.public_key])
    found.sign([ours])
    found.write_signatures(tmp_path / "proposal")
    again = Proposal.read(tmp_path / "proposal")
    assert again.changes.versions == (("model", 2),)
    assert again.changes.channels == ("stable",)
    for key in (ours.public_key, theirs.public_key):
        key.verify_signature(again.release.signatures[key.keyid], again.release.signed_bytes)


def test_nobody_signs_after_a_release_that_is_not_their_own(model: Path) -> None:
    first = Proposal.following(None, version_files(model, 1), NOW)
    first.sign([new_key("stranger")])
    made = Proposal.following(first.release, {}, NOW)
    with pytest.raises(FedspkError, match="not signed by this key"):
        made.check_base([new_key("aggregator").public_key])


def test_only_the_very_first_release_follows_none(model: Path) -> None:
    ours = new_key("aggregator")
    first = Proposal.following(None, version_files(model, 1), NOW)
    with pytest.raises(FedspkError, match="only the very first one does"):
        first.check_base([ours.public_key])
    first.check_base([ours.public_key], is_first=True)
    first.sign([ours])
    with pytest.raises(FedspkError, match="it is not the first"):
        second_version(first, model).check_base([ours.public_key], is_first=True)


def test_a_version_that_goes_back_has_the_old_ones_file(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    make_model(other, seed=2)
    first = Proposal.following(None, version_files(model, 1), NOW)
    for file, is_honest in ((model, True), (other, False)):
        files = version_files(file, 2)
        manifest = Proposal.following(first.release, files, NOW).manifest("model", 2)
        returned = manifest.model_copy(update={"rolled_back_to": 1})
        files[manifest_path("model", 2)] = returned.to_json()
        made = Proposal.following(first.release, files, NOW)
        if is_honest:
            made.check()
        else:
            with pytest.raises(FedspkError, match="goes back to version 1, but has not the model"):
                made.check()


def test_a_proposal_whose_model_changes_meanwhile_is_not_written(
    model: Path, tmp_path: Path
) -> None:
    live = tmp_path / "live.safetensors"
    shutil.copy(model, live)
    made = Proposal.following(None, version_files(live, 1), NOW)
    make_model(live, seed=2)
    with pytest.raises(FedspkError, match="has changed since it was read"):
        made.write(tmp_path / "proposal")
    assert not list((tmp_path / "proposal").rglob("model.safetensors"))


def test_an_old_version_may_be_withdrawn_and_its_number_is_not_used_again(
    model: Path, tmp_path: Path
) -> None:
    second = following(model).release
    files = version_files(model, 3)
    made = Proposal.following(second, files, NOW, withdrawn=[("model", 1)])
    made.check()
    assert made.changes.withdrawn == (("model", 1),)
    assert versions(made.release.signed, "model") == [2, 3]
    made.write(tmp_path / "proposal")
    assert Proposal.read(tmp_path / "proposal").changes == made.changes


def test_a_channel_cannot_be_set_to_what_is_withdrawn(model: Path) -> None:
    files = version_files(model, 3, channel=1)
    made = Proposal.following(following(model).release, files, NOW, withdrawn=[("model", 1)])
    with pytest.raises(FedspkError, match="names version 1, which is not released"):
        made.check()


@pytest.mark.parametrize("name", BROKEN)
def test_a_proposal_that_breaks_a_rule_is_refused(model: Path, name: str) -> None:
    change, words = BROKEN[name]
    following(model).check()
    with pytest.raises(FedspkError, match=words):
        change(following(model)).check()
