"""What neither party signs and the main server does not publish, whoever made it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from broken_proposals import BROKEN, second_version, version_files, write_unchecked
from tuf.api.metadata import Metadata, Targets
from version_repository import evaluated, keys_of, write_draft

from fedspk.cli import run
from fedspk.errors import FedspkError
from fedspk.proposals import Proposal, versions
from fedspk.release import Channel, channel_path, draft_manifest, manifest_path, model_path
from server import operations, upkeep
from server.repository import Repository, State, now

ON_THE_FIRST = [name for name in BROKEN if "withdraws" not in name]
"""These follow the release of version 1."""


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run, expect exit code 2 and one line on standard error, and return it."""
    assert run(["server", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


def released(state: State) -> Metadata[Targets]:
    assert state.release is not None
    return state.release


@pytest.fixture
def key(repository: Repository) -> Path:
    """The aggregator's key."""
    return next(repository.keys.glob("release-aggregator.*"))


@pytest.mark.parametrize("name", BROKEN)
def test_no_party_signs_what_breaks_a_rule(
    capsys: pytest.CaptureFixture[str],
    repository: Repository,
    key: Path,
    models: list[Path],
    tmp_path: Path,
    name: str,
) -> None:
    change, words = BROKEN[name]
    first = Proposal(released(repository.read()), None)
    folder = write_unchecked(change(second_version(first, models[0])), tmp_path / "proposal")
    before = (folder / "release.json").read_bytes()
    error = refused(capsys, "sign", folder, "--key", key)
    assert re.search(words, error), error
    assert (folder / "release.json").read_bytes() == before


@pytest.mark.parametrize("name", ON_THE_FIRST)
def test_the_server_accepts_nothing_that_breaks_a_rule(
    capsys: pytest.CaptureFixture[str],
    repository: Repository,
    models: list[Path],
    tmp_path: Path,
    name: str,
) -> None:
    change, words = BROKEN[name]
    before = repository.read()
    made = change(second_version(Proposal(released(before), None), models[0]))
    folder = write_unchecked(made, tmp_path / "proposal")
    error = refused(capsys, "accept", repository.folder, folder)
    assert re.search(words, error), error
    assert repository.read() == before


def test_a_proposal_passes_the_gate_when_it_is_accepted(
    capsys: pytest.CaptureFixture[str], repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    files = version_files(models[1], 2)
    facts = draft_manifest(evaluated(45.0), models[1], 2, created=now().isoformat())
    files[manifest_path("model", 2)] = facts.to_json()
    made = Proposal.following(repository.read().release, files, now())
    made.write(tmp_path / "proposal")
    accept = ("accept", repository.folder, tmp_path / "proposal")
    assert "worse by more than 0.5 points" in refused(capsys, *accept)
    assert run(["server", *map(str, accept), "--force", "--reason", "a trial"]) == 0
    assert repository.audit.entries()[-1]["forced"] == "a trial"


def test_a_draft_cannot_say_that_it_goes_back(
    capsys: pytest.CaptureFixture[str], repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    draft = write_draft(tmp_path / "draft.json", 45.0, rolled_back_to=1)
    publish = ("publish", repository.folder, "--model", models[1], "--manifest", draft)
    assert "rolled_back_to is set by" in refused(capsys, *publish, "--channel", "stable")


def test_the_way_back_leads_past_the_gate_and_the_way_ahead_does_not(
    capsys: pytest.CaptureFixture[str], repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    """Version 2 is bad and only for training; version 3 says that it goes back to it."""
    with repository.changing() as state:
        bad = operations.publication(repository, state, models[1], evaluated(45.0), "training")
        operations.publish(repository, state, bad, keys_of(repository), "publish")
    state = repository.read()
    second = repository.manifest(state, "model", 2)
    third = second.model_copy(update={"version": 3, "rolled_back_to": 2})
    made = Proposal.following(
        state.release,
        {
            model_path("model", 3): models[1],
            manifest_path("model", 3): third.to_json(),
            channel_path("stable"): Channel(name="stable", version=3).to_json(),
        },
        now(),
    )
    made.write(tmp_path / "proposal")
    accept = ("accept", repository.folder, tmp_path / "proposal")
    assert "worse by more than 0.5 points" in refused(capsys, *accept)


def test_a_canary_that_stable_has_overtaken_is_compared_with_stable(
    capsys: pytest.CaptureFixture[str], repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    for eer, channel in ((9.0, "canary"), (4.0, "stable")):
        draft = write_draft(tmp_path / "draft.json", eer)
        publish = ("publish", repository.folder, "--model", models[1], "--manifest", draft)
        force = ("--force", "--reason", "a trial")
        assert run(["server", *map(str, (*publish, "--channel", channel, *force))]) == 0
    draft = write_draft(tmp_path / "draft.json", 9.0)
    command = ("publish", repository.folder, "--model", models[0], "--manifest", draft)
    error = refused(capsys, *command, "--channel", "canary")
    assert "version 4 has an EER of 9 % and version 3 one of 4 %" in error
    write_draft(tmp_path / "draft.json", 4.2)
    assert run(["server", *map(str, command), "--channel", "canary"]) == 0
    parent = repository.manifest(repository.read(), "model", 4).parent
    assert parent is not None and parent.version == 3


def test_a_manifest_that_nobody_could_read_is_not_published(
    capsys: pytest.CaptureFixture[str], repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    long = {f"k{number}": "x" * 60 for number in range(1200)}
    draft = write_draft(tmp_path / "draft.json", training={"config": long})
    publish = ("publish", repository.folder, "--model", models[1], "--manifest", draft)
    for more in ((), ("--channel", "training"), ("--channel", "stable")):
        assert "longer than 65536 bytes" in refused(capsys, *publish, *more)
    assert versions(repository.read().released, "model") == [1]
    assert run(["server", "versions", str(repository.folder)]) == 0


def test_a_model_that_changes_while_it_is_published_is_not(
    repository: Repository, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live.safetensors"
    shutil.copy(models[1], live)
    before = repository.read()
    with repository.changing() as state:
        made = operations.publication(repository, state, live, evaluated(5.0), "stable")
        shutil.copy(models[0], live)
        with pytest.raises(FedspkError, match="not the file of the proposal's metadata"):
            operations.publish(repository, state, made, keys_of(repository), "publish")
        shutil.copy(models[1], live)
        monkeypatch.setattr(
            repository.audit, "append", lambda *_, **__: shutil.copy(models[0], live)
        )
        with pytest.raises(FedspkError, match="has changed since it was read"):
            operations.publish(repository, state, made, keys_of(repository), "publish")
    assert repository.read() == before


def test_a_parent_is_published_with_the_hash_that_is_stated(
    capsys: pytest.CaptureFixture[str], repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    first = repository.manifest(repository.read(), "model", 1)
    command = ("publish", repository.folder, "--model", models[1], "--manifest")
    false = write_draft(tmp_path / "false.json", parent={"version": 1, "content_hash": "0" * 64})
    assert "parent is model version 1 with the content hash 000" in refused(capsys, *command, false)
    true = {"version": 1, "content_hash": first.content_hash}
    draft = write_draft(tmp_path / "true.json", parent=true)
    assert run(["server", *map(str, command), str(draft)]) == 0
    parent = repository.manifest(repository.read(), "model", 2).parent
    assert parent is not None
    assert parent.model_dump() == true


def test_a_release_that_is_signed_again_elsewhere_is_held_to_the_rules(
    repository: Repository,
) -> None:
    again = upkeep.renewal(repository.read())
    again.release.signed.expires = now().replace(year=now().year + 3)
    with pytest.raises(FedspkError, match="no release may live longer"):
        upkeep.rotate_party(repository, "release-server", keys_of(repository), None, proposal=again)
