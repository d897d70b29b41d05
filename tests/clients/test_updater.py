"""A device follows its main server, and whatever goes wrong, it goes on serving."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from bent_server import Answer, BentServer, bent
from following_device import USERS, new_follower
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_device import THRESHOLDS, ask, new_device, toy_model, voice
from version_repository import (
    evaluated,
    expire,
    keys_but,
    keys_of,
    publish,
    publish_unchecked,
    release_unchecked,
    roll_back,
    root_of,
)

from clients import recogniser as recogniser_module
from clients import updater as updater_module
from clients.answers import device_status
from clients.compiled import CompiledEngine, CompiledModel
from clients.followed import (
    MainServer,
    leave_version,
    read_check,
    registered_with,
    write_registration,
)
from clients.recogniser import Recogniser
from clients.update_process import UpdateEndedError
from clients.updater import (
    DownloadDueError,
    Outcome,
    Updater,
    UpdateRunningError,
    follow_server,
)
from clients.vault import Vault, VaultError
from clients.versions import Threshold, Version, read_versions, thresholds_of
from fedspk import remote as remote_module
from fedspk.api import Failure
from fedspk.errors import FedspkError
from fedspk.release import Channel, Manifest, channel_path, manifest_path
from server import operations
from server.creation import SERVER, create
from server.repository import Repository

CUT = THRESHOLDS[1]
MODEL = "model.safetensors"


pytestmark = pytest.mark.usefixtures("quickly")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, models: list[Path]) -> Path:
    """The folder of a repository whose version 1 comes with a threshold."""
    folder = tmp_path_factory.mktemp("template") / "versions"
    create(folder)
    publish_calibrated(Repository(folder), models[0], 0.8)
    return folder


@pytest.fixture
def device(tmp_path: Path, followed: MainServer) -> Recogniser:
    return new_follower(tmp_path / "home", followed)


def publish_calibrated(repository: Repository, model: Path, cut: float) -> None:
    """Publish a model for stable, with one threshold for a false-accept rate of 1 %."""
    draft = {**evaluated(5.0), "thresholds": [{"false_accept_rate": 0.01, "threshold": cut}]}
    with repository.changing() as state:
        made = operations.publication(repository, state, model, draft, "stable")
        operations.publish(repository, state, made, keys_of(repository), "publish")


def check(device: Recogniser, **options: Any) -> Outcome:
    """Look for a new version as another process would."""
    return Updater(Vault.open(device._vault.home, ask), **options).check()


def downloads(server: BentServer) -> int:
    return sum(path.endswith(MODEL) for path in server.paths())


def assert_serves(device: Recogniser, number: int) -> None:
    """Every user is told from the others under a version, in this process and in a new one."""
    for each in (device, Recogniser(Vault.open(device._vault.home, ask))):
        for speaker, name in enumerate(USERS):
            assert each.verify(name, voice(speaker, 7), CUT).accepted
            assert not each.verify(name, voice(3, 7), CUT).accepted
        assert each.versions.current.number == number
    assert not (device._vault.home / "remote" / MODEL).exists()


def test_a_new_device_starts_with_the_present_version(device: Recogniser) -> None:
    assert_serves(device, 1)
    assert device.versions.previous is None
    assert device.versions.current.thresholds == (Threshold(0.8, 0.01),)


def test_a_published_version_is_taken_into_use(
    device: Recogniser, repository: Repository, models: list[Path]
) -> None:
    publish_calibrated(repository, models[1], 0.75)
    outcome = check(device)
    assert (outcome.changed, outcome.re_enrolled, outcome.trouble) == (True, 2, None)
    assert outcome.version.thresholds == (Threshold(0.75, 0.01),)
    assert outcome.report().version == 2
    assert outcome.report().state == "serving"
    assert_serves(device, 2)
    assert device.verify("anna", voice(0, 7), 0.01).threshold.score == 0.75
    assert device.versions.previous is not None
    assert device.versions.previous.number == 1


def test_without_news_nothing_is_downloaded(device: Recogniser, server: BentServer) -> None:
    server.requests.clear()
    outcome = check(device)
    assert not outcome.changed
    assert outcome.channel == Channel(name="stable", version=1)
    assert server.paths() == ["/metadata/2.root.json", "/metadata/timestamp.json"]


def test_a_canary_takes_the_canary_version(
    device: Recogniser, repository: Repository, models: list[Path]
) -> None:
    publish(repository, models[1])
    channels = [Channel(name="stable", version=1), Channel(name="canary", version=2, share=1.0)]
    publish_unchecked(repository, {channel_path(each.name): each.to_json() for each in channels})
    outcome = check(device)
    assert outcome.channel is not None
    assert (outcome.channel.name, outcome.version.number) == ("canary", 2)
    ended = channels[1].model_copy(update={"share": 0.0})
    publish_unchecked(repository, {channel_path("canary"): ended.to_json()})
    assert check(device).version.number == 1
    assert_serves(device, 1)


def test_a_rollback_to_weights_at_hand_is_instant(
    device: Recogniser,
    repository: Repository,
    server: BentServer,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish_calibrated(repository, models[1], 0.75)
    check(device)
    roll_back(repository, 1)
    server.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(updater_module, "compile_model", None)
        patch.setattr(CompiledEngine, "embed", None)
        outcome = check(device)
    assert outcome.changed
    assert outcome.version.number == 3
    assert downloads(server) == 0
    assert_serves(device, 3)


def damage_model(device: Recogniser, version: Version) -> None:
    damage(device._vault.home / "models" / f"{version.digest}.onnx")


def test_a_rollback_to_weights_that_were_damaged_downloads_them(
    device: Recogniser, repository: Repository, server: BentServer, models: list[Path]
) -> None:
    publish_calibrated(repository, models[1], 0.75)
    check(device)
    previous = read_versions(device._vault).previous
    assert previous is not None
    damage_model(device, previous)
    roll_back(repository, 1)
    server.requests.clear()
    assert check(device).trouble is None
    assert downloads(server) == 1
    assert_serves(device, 3)


def test_a_newer_version_takes_the_place_of_a_damaged_one(
    device: Recogniser, repository: Repository, models: list[Path]
) -> None:
    damage_model(device, device.versions.current)
    publish_calibrated(repository, models[1], 0.75)
    assert check(device).trouble is None
    assert_serves(device, 2)


def test_an_update_by_hand_mends_the_version_in_use(device: Recogniser, server: BentServer) -> None:
    damage_model(device, device.versions.current)
    server.requests.clear()
    assert not check(device).changed
    assert Updater(Vault.open(device._vault.home, ask)).check(again=True).changed
    assert downloads(server) == 1
    assert_serves(device, 1)


def test_a_number_belongs_to_its_model_even_if_somebody_changes_models_meanwhile(
    device: Recogniser, repository: Repository, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_calibrated(repository, models[1], 0.75)
    check(device)
    first = read_versions(device._vault).previous
    assert first is not None
    roll_back(repository, 1)

    def go_back_first(manifest: Manifest) -> tuple[Threshold, ...]:
        Recogniser(Vault.open(device._vault.home, ask)).use_previous()
        return thresholds_of(manifest)

    with monkeypatch.context() as patch:
        patch.setattr(updater_module, "thresholds_of", go_back_first)
        check(device)
    current = read_versions(device._vault).current
    assert (current.number, current.model_hash) == (3, first.model_hash)
    assert current.thresholds == (Threshold(0.8, 0.01),)
    assert_serves(device, 3)


def test_the_same_weights_under_a_new_number_bring_new_thresholds(
    device: Recogniser, repository: Repository, server: BentServer, models: list[Path]
) -> None:
    publish_calibrated(repository, models[0], 0.6)
    server.requests.clear()
    outcome = check(device)
    assert outcome.version.thresholds == (Threshold(0.6, 0.01),)
    assert downloads(server) == outcome.re_enrolled == 0
    assert_serves(device, 2)
    assert device.versions.previous is None


def flip(answer: Answer) -> None:
    answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])


Fault = Callable[[Repository, BentServer, pytest.MonkeyPatch], None]


def out_of_order(_: Repository, server: BentServer, __: pytest.MonkeyPatch) -> None:
    server.bend = lambda _, answer: setattr(answer, "status", 503)


def tampered(_: Repository, server: BentServer, __: pytest.MonkeyPatch) -> None:
    server.bend = lambda path, answer: flip(answer) if path.endswith(MODEL) else None


def broken_off(_: Repository, server: BentServer, __: pytest.MonkeyPatch) -> None:
    server.bend = lambda path, answer: setattr(answer, "cut", 5) if path.endswith(MODEL) else None


def frozen(repository: Repository, _: BentServer, patch: pytest.MonkeyPatch) -> None:
    expire(repository, patch)


def half_signed(repository: Repository, _: BentServer, patch: pytest.MonkeyPatch) -> None:
    with patch.context() as inner:
        inner.setattr(Repository, "check_signatures", lambda *_: None)
        release_unchecked(repository, keys_but(repository, SERVER), {})


def clock_behind(_: Repository, __: BentServer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(remote_module, "_now", lambda: datetime(1970, 1, 1, tzinfo=UTC))


def disk_full(_: Repository, __: BentServer, patch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 0)  # type: ignore[attr-defined]
    patch.setattr(shutil, "disk_usage", lambda _: usage)


def altered(repository: Repository, **fields: Any) -> None:
    state = repository.read()
    manifest = repository.manifest(state, "model", 2)
    changed = Manifest.model_validate({**manifest.model_dump(), **fields})
    publish_unchecked(repository, {manifest_path("model", 2): changed.to_json()})


def too_new(repository: Repository, _: BentServer, __: pytest.MonkeyPatch) -> None:
    altered(repository, minimum_client="99.0.0")


def unknown_encoder(repository: Repository, _: BentServer, __: pytest.MonkeyPatch) -> None:
    manifest = repository.manifest(repository.read(), "model", 2)
    assert manifest.architecture is not None
    altered(repository, architecture={**manifest.architecture.model_dump(), "encoder": "mystery"})


def other_weights(repository: Repository, _: BentServer, __: pytest.MonkeyPatch) -> None:
    altered(repository, content_hash=64 * "0")


def uncompilable(_: Repository, __: BentServer, patch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> CompiledModel:
        raise RuntimeError("no such operator\nand much more")

    patch.setattr(updater_module, "compile_model", fail)


def no_graph(_: Repository, __: BentServer, patch: pytest.MonkeyPatch) -> None:
    broken = CompiledModel(64 * "0", 100, b"no graph")
    patch.setattr(updater_module, "compile_model", lambda _: broken)


@pytest.mark.parametrize(
    ("fault", "failure", "attempted"),
    [
        (out_of_order, "unreachable", None),
        (broken_off, "unreachable", 2),
        (tampered, "refused", 2),
        (frozen, "refused", None),
        (half_signed, "refused", None),
        (clock_behind, "clock", None),
        (disk_full, "disk full", 2),
        (too_new, "incompatible", 2),
        (unknown_encoder, "incompatible", 2),
        (other_weights, "incompatible", 2),
        (uncompilable, "incompatible", 2),
        (no_graph, "other", 2),
    ],
)
def test_whatever_goes_wrong_the_version_in_use_goes_on_serving(
    device: Recogniser,
    repository: Repository,
    server: BentServer,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    failure: Failure,
    attempted: int | None,
) -> None:
    publish(repository, models[1])
    fault(repository, server, monkeypatch)
    outcome = check(device)
    assert outcome.trouble is not None
    assert (outcome.trouble.failure, outcome.trouble.version) == (failure, attempted)
    assert "\n" not in outcome.trouble.sentence
    assert outcome.trouble.sentence.endswith(".")
    report = outcome.report()
    assert (report.version, report.state, report.failure) == (1, "failed", failure)
    last = read_check(device._vault)
    assert last is not None
    assert last.trouble == outcome.trouble
    assert_serves(device, 1)


@pytest.mark.parametrize("fault", [out_of_order, broken_off, disk_full, clock_behind])
def test_what_passes_is_tried_again_each_time(
    device: Recogniser,
    repository: Repository,
    server: BentServer,
    models: list[Path],
    fault: Fault,
) -> None:
    publish(repository, models[1])
    with pytest.MonkeyPatch.context() as patch:
        fault(repository, server, patch)
        assert check(device).trouble
        again = check(device).trouble
    assert again is not None
    assert again.tries == 2
    server.bend = lambda *_: None
    assert check(device).changed
    assert_serves(device, 2)
    last = read_check(device._vault)
    assert last is not None
    assert last.trouble is last.misfit is None


def test_a_version_that_will_not_do_is_left_alone_for_a_while(
    device: Recogniser,
    repository: Repository,
    server: BentServer,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(repository, models[1])
    uncompilable(repository, server, monkeypatch)
    time = datetime(2026, 1, 1, tzinfo=UTC)

    def look(after: timedelta) -> int:
        """Return how many models were downloaded by a check so long after the first."""
        server.requests.clear()
        outcome = check(device, now=lambda: time + after)
        assert outcome.trouble is not None
        return downloads(server)

    hour = timedelta(hours=1)
    assert look(0 * hour) == 1
    assert look(0.9 * hour) == 0
    server.bend = lambda _, answer: setattr(answer, "status", 503)
    assert look(0.92 * hour) == 0
    server.bend = lambda *_: None
    assert look(0.95 * hour) == 0
    assert look(1.1 * hour) == 1
    assert look(2.9 * hour) == 0
    assert look(3.2 * hour) == 1
    assert look(-5 * hour) == 1
    assert look(2 * hour) == 0
    with monkeypatch.context() as patch:
        patch.setattr(updater_module, "__version__", "0.2.0")
        assert look(2 * hour) == 1
    publish(repository, models[2])
    assert look(2.1 * hour) == 1
    assert look(2.2 * hour) == 0
    server.requests.clear()
    Updater(device._vault, now=lambda: time + 2.3 * hour).check(again=True)
    assert downloads(server) == 1
    assert_serves(device, 1)


def test_a_download_goes_on_with_the_next_check(
    device: Recogniser, repository: Repository, server: BentServer, models: list[Path]
) -> None:
    publish(repository, models[1])
    server.bend = lambda path, answer: (
        setattr(answer, "cut", 1000) if path.endswith(MODEL) else None
    )
    check(device)
    server.bend = lambda *_: None
    check(device)
    headers = next(each for path, each in reversed(server.requests) if path.endswith(MODEL))
    assert headers["Range"] == "bytes=1000-"
    assert_serves(device, 2)


def test_one_process_at_a_time_looks(device: Recogniser) -> None:
    with (device._vault.home / "update.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UpdateRunningError, match="another process"):
            check(device)
    assert check(device).trouble is None


def test_a_device_without_a_server_says_so(tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match="follows no main server"):
        check(new_device(tmp_path / "offline"))


def test_an_altered_note_of_the_server_is_noticed(device: Recogniser) -> None:
    damage(device._vault.home / "server.box")
    with pytest.raises(VaultError):
        check(device)


def other_repository(folder: Path, model: Path) -> Repository:
    create(folder)
    other = Repository(folder)
    publish_calibrated(other, model, 0.7)
    return other


def test_following_another_server_mends_a_note_that_does_not_open(
    device: Recogniser, models: list[Path], tmp_path: Path
) -> None:
    vault = device._vault
    damage(vault.home / "server.box")
    other = other_repository(tmp_path / "other", models[2])
    with bent(other.folder / "public") as server:
        follow_server(vault, MainServer(server.address, root_of(other)))
        outcome = check(device)
    assert (outcome.version.number, outcome.changed) == (1, True)


def test_who_is_killed_while_it_goes_to_another_server_stays_registered(
    device: Recogniser, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = device._vault
    write_registration(vault, "http://127.0.0.1:1")
    other = other_repository(tmp_path / "other", models[2])

    def die(*_: Any) -> None:
        raise SystemExit

    with bent(other.folder / "public") as server:
        followed = MainServer(server.address, root_of(other))
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(updater_module, "write_server", die)
            follow_server(vault, followed)
        assert registered_with(vault) == "http://127.0.0.1:1"
        assert check(device).version.number == 1
        follow_server(vault, followed)
    assert registered_with(vault) is None


def test_a_look_is_at_the_server_that_is_followed_when_it_begins(
    device: Recogniser, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_repository(tmp_path / "other", models[2])
    alone = updater_module._alone

    @contextmanager
    def alone_after_another(home: Path) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(updater_module, "_alone", alone)
            follow_server(device._vault, MainServer(server.address, root_of(other)))
        with alone(home):
            yield

    with bent(other.folder / "public") as server, monkeypatch.context() as patch:
        patch.setattr(updater_module, "_alone", alone_after_another)
        outcome = check(device)
    assert outcome.version.model_hash == other.manifest(other.read(), "model", 1).content_hash


def test_a_note_of_the_last_look_that_does_not_open_is_written_anew(
    device: Recogniser,
    repository: Repository,
    models: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    vault = device._vault
    publish_calibrated(repository, models[1], 0.75)
    check(device)
    damage(vault.home / "check.box")
    assert device_status(vault, read_versions(vault))["last_check"] is None
    assert "which version the owner has left" in caplog.text
    leave_version(vault)
    device.use_previous()
    assert check(device).version.number == 1
    damage(vault.home / "check.box")
    assert check(device).version.number == 2
    caplog.clear()
    assert read_check(vault) is not None
    assert not caplog.text


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


def test_a_damaged_recording_holds_nobody_else_back(
    device: Recogniser, repository: Repository, models: list[Path]
) -> None:
    publish_calibrated(repository, models[1], 0.75)
    vault = device._vault
    anna = vault.user("anna")
    damage(vault.home / "users" / anna.id / "0.audio")
    outcome = check(device)
    assert (outcome.version.number, outcome.re_enrolled, outcome.trouble) == (2, 1, None)
    assert device.verify("bert", voice(1, 7), CUT).accepted
    assert [each.user for each in device.identify(voice(1, 7), CUT)] == ["bert"]
    with pytest.raises(VaultError, match="was altered"):
        device.verify("anna", voice(0, 7), CUT)
    assert list(vault.unserved(outcome.version.model_hash)) == [anna.id]


def test_a_profile_that_does_not_open_is_made_anew(device: Recogniser) -> None:
    vault, model_hash = device._vault, device.versions.current.model_hash
    for path in vault.home.glob("users/*/*.profile"):
        damage(path)
    assert vault.unserved(model_hash) == {}
    assert device.verify("anna", voice(0, 7), CUT).accepted
    assert vault.profile(vault.user("anna"), model_hash).profile.utterances == 3


def test_a_model_box_that_was_altered_is_noted(
    device: Recogniser, repository: Repository, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(repository, models[1])

    def altered(*_: Any) -> int:
        raise VaultError("a box was altered.")

    monkeypatch.setattr(Recogniser, "swap", altered)
    check(device)
    last = read_check(device._vault)
    assert last is not None
    assert last.trouble is not None
    assert (last.trouble.failure, last.trouble.version) == ("other", 2)


def test_a_version_whose_update_dies_again_and_again_is_left_alone(
    device: Recogniser, repository: Repository, server: BentServer, models: list[Path]
) -> None:
    publish(repository, models[1])
    time = datetime(2026, 1, 1, tzinfo=UTC)
    updater = Updater(device._vault, now=lambda: time)
    for tries in (1, 2, 3):
        with pytest.raises(DownloadDueError) as due:
            updater.look()
        outcome = updater.give_up(due.value.version, UpdateEndedError("the process was killed."))
        assert outcome.trouble is not None
        assert (outcome.trouble.version, outcome.trouble.tries) == (2, tries)
        server.bend = lambda _, answer: setattr(answer, "status", 503)
        assert updater.look().report().failure == "unreachable"
        server.bend = lambda *_: None
    assert updater.look().report().failure == "other"
    assert updater.check(again=True).changed
    assert updater.give_up(2, UpdateEndedError("the process was killed.")).trouble is None


def test_a_lock_that_cannot_be_made_is_told_in_a_sentence(
    device: Recogniser,
) -> None:
    (device._vault.home / "update.lock").unlink()
    (device._vault.home / "update.lock").mkdir()
    with pytest.raises(FedspkError, match="cannot be written"):
        check(device)


def test_the_root_of_trust_is_the_sealed_one(
    device: Recogniser, tmp_path: Path, server: BentServer, models: list[Path]
) -> None:
    """Whoever can write the disk and the network cannot bring in versions of another server."""
    create(tmp_path / "other")
    other = Repository(tmp_path / "other")
    publish(other, models[1])
    publish(other, models[1])
    remote = device._vault.home / "remote"
    for path in [remote / "first-root.json", remote / "root_history" / "1.root.json"]:
        path.write_bytes(root_of(other))
    server.folder = other.folder / "public"
    for name in ("timestamp", "snapshot", "targets", "release"):
        (remote / f"{name}.json").unlink()
    outcome = check(device)
    assert outcome.trouble is not None
    assert outcome.trouble.failure == "refused"
    assert_serves(device, 1)


def test_who_is_enrolled_or_forgotten_during_an_update_is_so_after_it(
    device: Recogniser,
    repository: Repository,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(repository, models[1])
    prepare = Recogniser.prepare

    def meanwhile(updating: Recogniser, *arguments: Any) -> Any:
        prepared = prepare(updating, *arguments)
        device.enrol("carl", [voice(2, 0)])
        device.enrol("anna", [voice(0, 3)])
        vault = device._vault
        with vault.writing():
            vault.forget(vault.user("bert"))
        return prepared

    monkeypatch.setattr(Recogniser, "prepare", meanwhile)
    assert check(device).re_enrolled == 2
    vault = device._vault
    assert [user.name for user in vault.users()] == ["anna", "carl"]
    assert device.verify("carl", voice(2, 7), CUT).accepted
    current = read_versions(vault).current
    assert current.number == 2
    assert vault.profile(vault.user("anna"), current.model_hash).profile.utterances == 4


def test_the_vault_is_free_while_users_are_re_enrolled(
    device: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = CompiledEngine.embed
    was_free = []

    def look(engine: CompiledEngine, speech: np.ndarray[Any, Any]) -> Any:
        with (device._vault.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            was_free.append(True)
        return embed(engine, speech)

    monkeypatch.setattr(CompiledEngine, "embed", look)
    device.use_model(toy_model(9), THRESHOLDS)
    assert len(was_free) == 6


def test_others_are_answered_while_one_thread_loads_the_new_version(
    device: Recogniser, repository: Repository, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(repository, models[1])
    check(device)
    loading, go_on = Event(), Event()
    load = recogniser_module.load_model

    def slowly(*arguments: Any) -> CompiledModel:
        loading.set()
        assert go_on.wait(10)
        return load(*arguments)

    monkeypatch.setattr(recogniser_module, "load_model", slowly)
    thread = Thread(target=device.follow)
    thread.start()
    assert loading.wait(10)
    old = device.versions.current
    assert device.verify("anna", voice(0, 7), 0.01).model_hash == old.model_hash
    go_on.set()
    thread.join()
    assert device.versions.current.number == 2
    assert device.verify("anna", voice(0, 7), CUT).model_hash != old.model_hash


EVENTS = st.lists(
    st.sampled_from(["publish", "roll back", "cut", "flip", "away", "well"]),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(events=EVENTS)
def test_the_device_always_has_a_published_version_with_all_profiles(
    events: list[str],
    template: Path,
    models: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("life")
    shutil.copytree(template, folder / "versions")
    repository = Repository(folder / "versions")
    bends: dict[str, Callable[[Answer], object]] = {
        "cut": lambda answer: setattr(answer, "cut", 70_000),
        "flip": flip,
        "away": lambda answer: setattr(answer, "status", 502),
        "well": lambda _: None,
    }
    with bent(repository.folder / "public") as server:
        device = new_follower(folder / "home", MainServer(server.address, root_of(repository)))
        latest = 1
        for number, event in enumerate([*events, "well"]):
            if event == "publish":
                publish(repository, models[number % 3])
                latest += 1
            elif event == "roll back" and latest > 1:
                roll_back(repository, 1)
                latest += 1
            elif event in bends:
                bend = bends[event]
                server.bend = lambda path, answer, bend=bend: (  # type: ignore[misc]
                    bend(answer) if path.endswith(MODEL) else None
                )
            outcome = Updater(device._vault).check(again=True)
            assert outcome.changed or outcome.trouble or outcome.version.number == latest
            vault = Vault.open(folder / "home", ask)
            current = read_versions(vault).current
            assert current.number is not None
            assert 1 <= current.number <= latest
            for user in vault.users():
                assert vault.has_profile(user, current.model_hash)
        assert_serves(device, latest)
