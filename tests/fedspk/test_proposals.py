"""Two parties, two hosts: what one proposes, the other checks before it signs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Delegations, TargetFile
from version_repository import make_model

from fedspk.errors import FedspkError
from fedspk.proposals import Content, Proposal, versions
from fedspk.release import Channel, channel_path, draft_manifest, manifest_path, model_path
from fedspk.signing import new_key

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    make_model(path)
    return path


def version_files(model: Path, number: int, channel: int | None = None) -> dict[str, Content]:
    manifest = draft_manifest({}, model, number, created=NOW.isoformat())
    stable = Channel(name="stable", version=channel or number)
    return {
        model_path("model", number): model,
        manifest_path("model", number): manifest.to_json(),
        channel_path("stable"): stable.to_json(),
    }


def following(model: Path) -> Proposal:
    """Return a proposal of version 2 after version 1."""
    first = Proposal.following(None, version_files(model, 1), NOW)
    return Proposal.following(first.release, version_files(model, 2), NOW)


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


def _half_withdrawn(proposal: Proposal) -> Proposal:
    third = Proposal.following(proposal.release, {}, NOW, withdrawn=[("model", 1)])
    path = manifest_path("model", 1)
    third.release.signed.targets[path] = proposal.release.signed.targets[path]
    return third


def _newest_withdrawn(proposal: Proposal) -> Proposal:
    return Proposal.following(proposal.release, {}, NOW, withdrawn=[("model", 2)])


def _channel_removed(proposal: Proposal) -> Proposal:
    del proposal.release.signed.targets[channel_path("stable")]
    kept = {path: each for path, each in proposal.files.items() if "channels" not in path}
    return replace(proposal, files=kept)


def _file(path: str, content: bytes = b"x") -> Callable[[Proposal], Proposal]:
    def change(proposal: Proposal) -> Proposal:
        proposal.release.signed.targets[path] = TargetFile.from_data(path, content)
        return replace(proposal, files={**proposal.files, path: content})

    return change


def _without(path: str) -> Callable[[Proposal], Proposal]:
    def change(proposal: Proposal) -> Proposal:
        del proposal.release.signed.targets[path]
        return replace(proposal, files={k: v for k, v in proposal.files.items() if k != path})

    return change


def _skipped(proposal: Proposal) -> Proposal:
    proposal.release.signed.version += 1
    return proposal


def _delegating(proposal: Proposal) -> Proposal:
    proposal.release.signed.delegations = Delegations({}, {})
    return proposal


def _long_lived(proposal: Proposal) -> Proposal:
    proposal.release.signed.expires += timedelta(days=365)
    return proposal


def _other_file(proposal: Proposal) -> Proposal:
    return replace(proposal, files={**proposal.files, manifest_path("model", 2): b"{}"})


def _weak_hash(proposal: Proposal) -> Proposal:
    proposal.release.signed.targets[channel_path("stable")].hashes = {"md5": "0" * 32}
    return proposal


def _second_manifest(proposal: Proposal) -> Proposal:
    manifest = proposal.manifest("model", 2).model_copy(update={"content_hash": "0" * 64})
    return _file(manifest_path("model", 2), manifest.to_json())(proposal)


BROKEN: dict[str, tuple[Callable[[Proposal], Proposal], str]] = {
    "skips a version of the metadata": (_skipped, "metadata version 3"),
    "delegates": (_delegating, "more than a release may"),
    "lives too long": (_long_lived, "no release may live longer than 180 days"),
    "removes a version": (_without(model_path("model", 1)), "removes models/1"),
    "withdraws the newest version": (_newest_withdrawn, r"removes models/2.* until a later one"),
    "withdraws half a version": (_half_withdrawn, "withdraws model version 1 without models/1/man"),
    "removes a channel": (_channel_removed, "removes channels/stable.json"),
    "alters a version": (_file(manifest_path("model", 1)), "alters models/1/manifest"),
    "adds something else": (_file("../../etc/passwd"), "no part of a release"),
    "skips a number": (_file(model_path("model", 4)), r"adds model version 4; 2 is next"),
    "lacks a manifest": (_without(manifest_path("model", 2)), "without models/2/manifest"),
    "holds another file": (_other_file, "not the file of the proposal's metadata"),
    "names a file by MD5": (_weak_hash, "by its SHA-256"),
    "lies in its manifest": (_second_manifest, "do not have the content hash"),
    "has a broken manifest": (
        _file(manifest_path("model", 2)),
        r"models/2/manifest\.json is wrong",
    ),
    "moves a channel to nowhere": (
        _file(channel_path("canary"), Channel(name="canary", version=9).to_json()),
        "names version 9, which is not released",
    ),
    "mistakes a channel": (
        _file(channel_path("canary"), Channel(name="stable", version=2).to_json()),
        "is of channel stable",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_proposal_that_breaks_a_rule_is_refused(model: Path, name: str) -> None:
    change, words = BROKEN[name]
    following(model).check()
    with pytest.raises(FedspkError, match=words):
        change(following(model)).check()
