"""A run's models on the main server: signed by both, verified by devices, once each."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from handing_over import Parties, parties, run_app
from sounds import write_speakers
from tiny_federation import tiny_config, tiny_store

from aggregator.checkpoint import load_checkpoint
from aggregator.handover import KEPT_ROUNDS, Handover
from aggregator.publisher import MainServer
from aggregator.record import RoundProgress, RoundRecord
from aggregator.signed_memory import SignedMemory
from clients.model_source import ModelNotReleasedError, ModelSource
from fedspk.connection import Connection, VersionsUnreachable
from fedspk.errors import FedspkError
from fedspk.proposals import Proposal
from fedspk.remote import RemoteVersions
from fedspk.rounds import RunConfig
from fedspk.run_model import (
    device_model,
    initial_vector,
    save_shared,
    shared_names,
    starting_vector,
)
from fedspk.signing import load_key, new_key, save_key
from fedspk.weights import WeightStore
from server import operations
from server.keyring import at_hand

CONFIG = {"share_statistics": True, "update_transport": "message"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.publisher.LONGEST_WAIT_S", 0.0)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Parties]:
    with parties(tmp_path / "server") as found:
        yield found


@pytest.fixture
def config() -> RunConfig:
    return tiny_config(**CONFIG)


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "store")


@pytest.fixture
def handover(both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore) -> Handover:
    """The way of a run to the server."""
    return both.handover(tmp_path / "versions", config, store)


@pytest.fixture
def source(both: Parties, tmp_path: Path) -> ModelSource:
    """Where a device has its models from."""
    return ModelSource(both.address, tmp_path / "device", both.root)


def lose_a_reply(patch: pytest.MonkeyPatch) -> list[int]:
    """Lose the reply to the next proposal; its status is in the list then."""
    send, lost = Connection.send, []

    def losing(self: Connection, method: str, url: str, *rest: object) -> tuple[int, bytes]:
        answer = send(self, method, url, *rest)
        if url.endswith("/proposals") and not lost:
            lost.append(answer[0])
            raise VersionsUnreachable("the reply is lost")
        return answer

    patch.setattr(Connection, "send", losing)
    return lost


def put_models(store: WeightStore, config: RunConfig, count: int) -> list[str]:
    vector = initial_vector(config)
    return [store.put(vector + np.float32(0.01 * number)) for number in range(count)]


def last_model(folder: Path, config: RunConfig) -> str:
    initial = WeightStore(folder / "store").put(initial_vector(config))
    state = load_checkpoint(folder / "checkpoints", config, initial)
    assert state is not None
    return state.model


@pytest.mark.parametrize("secure", [True, False])
def test_devices_train_from_what_both_parties_signed(
    both: Parties, tmp_path: Path, secure: bool
) -> None:
    learning = {"learning_rate": 3e-3, "final_learning_rate": 3e-3, "local_steps": 6}
    config = tiny_config(**CONFIG, **learning, secure=secure)
    node = {"server": both.address, "server-root": str(both.root)}
    run_app(tmp_path / "run", config, both.run_config(), node, 3)
    rounds, best = [both.manifest(n) for n in (1, 2, 3)], both.manifest(4)
    assert both.numbers() == [1, 2, 3, 4]
    assert [each.training.round for each in rounds if each.training] == [0, 1, 2]
    assert [each.intermediate for each in (*rounds, best)] == [True, True, True, False]
    assert rounds[2].training is not None and rounds[2].training.survivors == 3
    assert rounds[2].parent is not None and rounds[2].parent.version == 2
    assert both.channel() == both.channel().model_copy(update={"version": 4})
    assert best.content_hash in {each.content_hash for each in rounds}
    who = {entry["who"] for entry in both.repository.audit.entries() if entry["action"] != "init"}
    assert who == {"aggregator"}
    run_app(tmp_path / "alone", config, {}, {}, 3)
    assert last_model(tmp_path / "run", config) == last_model(tmp_path / "alone", config)


def test_a_finished_run_that_is_started_again_publishes_nothing(
    both: Parties, tmp_path: Path, config: RunConfig
) -> None:
    for _ in range(2):
        run_app(tmp_path / "run", config, both.run_config(), {}, 2)
        assert both.numbers() == [1, 2, 3, 4]


def test_a_finished_run_that_is_started_again_undoes_nothing(
    both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore, handover: Handover
) -> None:
    run_app(tmp_path / "run", config, both.run_config(), {}, 2)
    (other,) = put_models(store, config, 2)[1:]
    handover.finish(other, record_of(1), None)
    before = both.channel()
    run_app(tmp_path / "run", config, both.run_config(), {}, 2)
    assert both.channel() == before


def test_a_run_that_goes_on_publishes_where_it_stopped(
    both: Parties, tmp_path: Path, config: RunConfig
) -> None:
    run_app(tmp_path / "run", config.changed(rounds=1), both.run_config(), {}, 2)
    assert both.numbers() == [1, 2, 3]
    run_app(tmp_path / "run", config, both.run_config(), {}, 2)
    assert both.manifest(4).training.round == 2
    assert both.manifest(5).intermediate is False


def test_a_device_refuses_a_model_that_is_not_released(
    tmp_path: Path, config: RunConfig, store: WeightStore, handover: Handover, source: ModelSource
) -> None:
    first, second, third, other = put_models(store, config, 4)
    with pytest.raises(ModelNotReleasedError, match="no model is released for training"):
        source.get(first, config)
    for number, model in enumerate((first, second, third)):
        handover.offer(model, RoundProgress(number), None)
        assert np.array_equal(source.get(model, config), store.get(model))
    assert np.array_equal(source.get(second, config), store.get(second))  # kept, the first is not
    for model in (first, other):
        with pytest.raises(ModelNotReleasedError, match="not the model"):
            source.get(model, config)
    assert len(list((tmp_path / "device" / "models").iterdir())) == 2


def test_a_device_that_lost_power_fetches_anew(
    both: Parties,
    tmp_path: Path,
    config: RunConfig,
    store: WeightStore,
    handover: Handover,
    source: ModelSource,
) -> None:
    (model,) = put_models(store, config, 1)
    handover.offer(model, RoundProgress(0), None)
    source.get(model, config)
    torn = next((tmp_path / "device" / "models").iterdir())
    torn.write_bytes(torn.read_bytes()[:-4])
    after = ModelSource(both.address, tmp_path / "device", both.root)
    assert np.array_equal(after.get(model, config), store.get(model))


def test_a_federation_of_refusing_devices_says_so(
    both: Parties, tmp_path: Path, config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    node = {"server": both.address, "server-root": str(both.root)}
    with pytest.raises(FedspkError, match="None of the run's 2 rounds was finished"):
        run_app(tmp_path / "run", config, {}, node, 2)
    assert "the device failed (ModelNotReleasedError)" in caplog.text


def test_a_lost_reply_publishes_once(
    both: Parties,
    config: RunConfig,
    store: WeightStore,
    monkeypatch: pytest.MonkeyPatch,
    handover: Handover,
) -> None:
    (model,) = put_models(store, config, 1)
    lost = lose_a_reply(monkeypatch)
    handover.offer(model, RoundProgress(0), None)
    assert lost == [201]
    assert both.numbers() == [1]


def test_after_a_hand_over_of_unknown_end_the_round_before_is_offered_again(
    both: Parties,
    config: RunConfig,
    store: WeightStore,
    monkeypatch: pytest.MonkeyPatch,
    handover: Handover,
    source: ModelSource,
) -> None:
    first, second = put_models(store, config, 2)
    handover.offer(first, RoundProgress(0), None)
    with monkeypatch.context() as patched:
        patched.setattr("aggregator.publisher.ATTEMPTS", 1)
        lose_a_reply(patched)
        with pytest.raises(FedspkError, match="after 1 attempts"):
            handover.offer(second, RoundProgress(1), None)
    assert both.numbers() == [1, 2]
    handover.offer(first, RoundProgress(0), None)
    assert np.array_equal(source.get(first, config), store.get(first))


def test_another_change_in_between_is_followed(
    both: Parties,
    config: RunConfig,
    store: WeightStore,
    monkeypatch: pytest.MonkeyPatch,
    handover: Handover,
) -> None:
    first, second = put_models(store, config, 2)
    handover.offer(first, RoundProgress(0), None)
    refresh, changed = RemoteVersions.refresh, []

    def overtaken(self: RemoteVersions) -> None:
        refresh(self)
        if not changed:
            changed.append(True)
            promote(both, 1)

    monkeypatch.setattr(RemoteVersions, "refresh", overtaken)
    handover.offer(second, RoundProgress(1), None)
    assert both.numbers() == [1, 2]
    assert both.channel("canary").version == 1


def promote(both: Parties, version: int) -> None:
    """Let an operator with all keys set the canary channel."""
    keys = at_hand(both.repository.keys, [both.key], None)
    with both.repository.changing() as state:
        made = operations.promotion(both.repository, state, version, "canary")
        operations.publish(both.repository, state, made, keys, "promote")


def test_a_model_that_somebody_else_replaced_is_offered_again(
    both: Parties,
    tmp_path: Path,
    config: RunConfig,
    store: WeightStore,
    handover: Handover,
    source: ModelSource,
) -> None:
    first, second = put_models(store, config, 2)
    handover.offer(first, RoundProgress(0), None)
    both.handover(tmp_path / "other", config, store).offer(second, RoundProgress(0), None)
    handover.offer(first, RoundProgress(0), None)
    assert np.array_equal(source.get(first, config), store.get(first))
    handover.offer(first, RoundProgress(0), None)
    assert both.numbers() == [1, 2, 3]


def test_an_answer_is_not_believed_before_the_metadata_show_it(
    both: Parties,
    config: RunConfig,
    store: WeightStore,
    monkeypatch: pytest.MonkeyPatch,
    handover: Handover,
) -> None:
    (model,) = put_models(store, config, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "send", lambda *_: (200, b"<html>log in</html>"))
        with pytest.raises(FedspkError, match="took the release, but its metadata do not show it"):
            handover.offer(model, RoundProgress(0), None)
    handover.offer(model, RoundProgress(0), None)
    assert both.numbers() == [1]


def test_a_server_that_shows_an_older_state_gets_no_signature(
    both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore, handover: Handover
) -> None:
    """Not even from a run that has no metadata yet."""
    models = put_models(store, config, 3)
    public, before = both.repository.folder / "public", tmp_path / "before"
    shutil.copytree(public, before / "0")
    for number, model in enumerate(models[:2], 1):
        handover.offer(model, RoundProgress(number), None)
        shutil.copytree(public, before / str(number))
    for state in (0, 1):
        shutil.rmtree(public)
        shutil.copytree(before / str(state), public)
        fresh = both.handover(tmp_path / f"fresh-{state}", config, store)
        with pytest.raises(FedspkError, match=f"shows release {state}, but .* release 2"):
            fresh.offer(models[2], RoundProgress(0), None)
        present = both.repository.read().release
        assert (present.signed.version if present else 0) == state


def test_two_runs_with_one_key_may_publish_at_once(
    both: Parties,
    tmp_path: Path,
    config: RunConfig,
    store: WeightStore,
    handover: Handover,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = put_models(store, config, 3)
    handover.offer(first, RoundProgress(0), None)
    other = both.handover(tmp_path / "other", config, store)
    refresh, waiting = RemoteVersions.refresh, [second]

    def overtaken(self: RemoteVersions) -> None:
        refresh(self)
        if waiting:
            other.offer(waiting.pop(), RoundProgress(1), None)

    monkeypatch.setattr(RemoteVersions, "refresh", overtaken)
    handover.offer(third, RoundProgress(1), None)
    assert both.numbers() == [1, 2, 3]


def test_one_run_at_a_time_remembers_and_nothing_older(
    both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore, handover: Handover
) -> None:
    models = put_models(store, config, 2)
    handover.offer(models[0], RoundProgress(0), None)
    found, path = both.repository.read().release, tmp_path / "other.pem"
    handover.offer(models[1], RoundProgress(1), None)
    memory, later = path.with_name("other.pem.signed.json"), both.key.name + ".signed.json"
    with path.with_name("other.pem.signed.lock").open("wb") as lock, ThreadPoolExecutor() as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        late = pool.submit(SignedMemory(path).accept, found)
        with pytest.raises(TimeoutError):
            late.result(0.2)
        shutil.copy(both.key.with_name(later), memory)
        fcntl.flock(lock, fcntl.LOCK_UN)
        with pytest.raises(FedspkError, match=r"shows release 1, but .* another release 2"):
            late.result()
    assert memory.read_bytes() == both.key.with_name(later).read_bytes()


def test_another_history_of_the_same_length_gets_no_signature(
    both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore, handover: Handover
) -> None:
    first, second, third = put_models(store, config, 3)
    public, before = both.repository.folder / "public", tmp_path / "before"
    shutil.copytree(public, before)
    handover.offer(first, RoundProgress(0), None)
    shutil.rmtree(public)
    shutil.copytree(before, public)
    elsewhere = shutil.copy(both.key, tmp_path / "elsewhere.pem")  # a key without its memory
    replace(both, key=Path(elsewhere)).handover(tmp_path / "b", config, store).offer(
        second, RoundProgress(0), None
    )
    with pytest.raises(FedspkError, match=r"shows release 1, but .* another release 1"):
        both.handover(tmp_path / "c", config, store).offer(third, RoundProgress(0), None)


def test_a_release_that_another_key_signed_is_not_followed(
    both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore, handover: Handover
) -> None:
    first, second = put_models(store, config, 2)
    handover.offer(first, RoundProgress(0), None)
    save_key(tmp_path / "stranger.pem", new_key("stranger"), None)
    stranger = replace(both, key=tmp_path / "stranger.pem")
    with pytest.raises(FedspkError, match="is not signed by this key"):
        stranger.handover(tmp_path / "b", config, store).offer(second, RoundProgress(1), None)


def test_what_breaks_a_rule_is_not_signed(
    both: Parties, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lasting(found: RemoteVersions) -> Proposal:
        return Proposal.following(found.release(), {}, datetime.now(UTC) + timedelta(days=365))

    sent: list[object] = []
    monkeypatch.setattr(Connection, "send", lambda *about: sent.append(about) or (200, b""))
    with pytest.raises(FedspkError, match="no release may live longer"):
        both.main_server(tmp_path / "versions").publish(lasting)
    assert not sent


def test_a_run_that_learnt_nothing_publishes_no_whole_version(
    both: Parties, tmp_path: Path, config: RunConfig
) -> None:
    spoilt = config.changed(learning_rate=50.0, final_learning_rate=50.0)
    run_app(tmp_path / "run", spoilt, both.run_config(), {}, 2)
    state = load_checkpoint(
        tmp_path / "run" / "checkpoints",
        spoilt,
        WeightStore(tmp_path / "run" / "store").put(initial_vector(spoilt)),
    )
    assert state is not None and state.best.round == 0
    assert all(both.manifest(number).intermediate for number in both.numbers())


def test_old_rounds_are_withdrawn_but_for_those_that_a_channel_names(
    both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore, handover: Handover
) -> None:
    models = put_models(store, config, 9)
    for number, model in enumerate(models):
        handover.offer(model, RoundProgress(number), None)
        if number == 1:
            promote(both, 2)
    assert both.numbers() == [2, *range(10 - KEPT_ROUNDS, 10)]
    again = both.handover(tmp_path / "anew", config, store)  # one that knows nothing yet
    again.offer(models[0], RoundProgress(0), None)
    assert both.numbers() == [2, *range(11 - KEPT_ROUNDS, 11)]


def test_a_server_that_is_away_fails_the_round_and_the_run_goes_on(
    both: Parties, tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Connection.send

    def away(self: Connection, method: str, url: str, *rest: object) -> tuple[int, bytes]:
        if url.endswith("/proposals") and both.numbers() == [1]:
            raise VersionsUnreachable("the server is away")
        return send(self, method, url, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "send", away)
        with pytest.raises(FedspkError, match="after 8 attempts nothing is published"):
            run_app(tmp_path / "run", config, both.run_config(), {}, 2)
    assert both.numbers() == [1]
    kept = len(list((tmp_path / "run" / "store").iterdir()))
    run_app(tmp_path / "run", config.changed(rounds=3), both.run_config(), {}, 2)
    assert [both.manifest(n).training.round for n in both.numbers()] == [0, 3, 3]
    assert kept == 1


def test_what_the_server_refuses_is_told_at_once(
    both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore
) -> None:
    (model,) = put_models(store, config, 1)
    both.token.write_text("fedspk_another\n")
    handover = both.handover(tmp_path / "versions", config, store)
    with pytest.raises(FedspkError, match=r"operator.*token.*\(status 401\)"):
        handover.offer(model, RoundProgress(0), None)
    assert both.numbers() == []


def test_the_best_model_is_evaluated_and_goes_to_the_canaries(
    both: Parties, tmp_path: Path, store: WeightStore
) -> None:
    config = tiny_config(**CONFIG, rounds=1)
    speech = tmp_path / "speech"
    write_speakers(speech, speakers=2, utterances=2)
    names = sorted(str(path.relative_to(speech)) for path in speech.rglob("*.wav"))
    lines = [f"1 {names[0]} {names[1]}", f"0 {names[0]} {names[2]}"]
    (speech / "trials").write_text("\n".join(lines))
    settings = {"server-channel": "canary", "evaluation-trials": str(speech / "trials")}
    (first,) = put_models(store, config, 1)
    both.handover(tmp_path / "versions", config, store).finish(first, record_of(0), None)
    promote(both, 1)
    (both.repository.folder / "server.toml").write_text("aggregator-canary = true\n")
    run_app(tmp_path / "run", config, {**both.run_config(), **settings}, {}, 2)
    canary = both.channel("canary")
    assert canary is not None and (canary.version, canary.share) == (3, 0.1)
    assert both.channel().version == 2
    manifest = both.manifest(3)
    assert manifest.evaluation is not None and manifest.evaluation.devices == 1
    assert not manifest.intermediate


def test_a_run_starts_from_what_a_channel_names_and_goes_on_from_the_same(
    both: Parties, tmp_path: Path, config: RunConfig, store: WeightStore, handover: Handover
) -> None:
    (model,) = put_models(store, config, 2)[1:]
    handover.finish(model, record_of(0), None)
    settings = {**both.run_config(), "init": "training"}
    run_app(tmp_path / "run", config.changed(rounds=1), settings, {}, 2)
    run_app(tmp_path / "run", config, settings, {}, 2)
    state = load_checkpoint(tmp_path / "run" / "checkpoints", config, model)
    assert state is not None and state.round == 2
    with pytest.raises(FedspkError, match="says that this run started from 'training'"):
        run_app(tmp_path / "run", config, {**settings, "init": "stable"}, {}, 2)
    assert [both.manifest(n).training.round for n in both.numbers()][:2] == [0, 1]


def test_a_head_of_another_run_stays_behind(tmp_path: Path, config: RunConfig) -> None:
    other = config.changed(public=5, seed=9)
    save_shared(tmp_path / "model", initial_vector(other), other)
    vector = starting_vector(tmp_path / "model", config)
    head, encoder = initial_vector(config), initial_vector(other)
    names = shared_names(device_model(config), config)
    sizes = [device_model(config).state_dict()[name].numel() for name in names]
    first = sum(size for name, size in zip(names, sizes, strict=True) if "encoder." in name)
    assert names[0].startswith("encoder.") and first < vector.size
    assert np.array_equal(vector[:first], encoder[:first])
    assert np.array_equal(vector[first:], head[first:])
    with pytest.raises(FedspkError, match="this run trains"):
        starting_vector(tmp_path / "model", config.changed(frames=25))


def record_of(number: int) -> RoundRecord:
    return RoundProgress(number).record()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server-channel": "stable"}, "a run publishes to training or canary"),
        ({"init": "canary"}, "that channel names no version yet"),
        ({"init": "canary", "server": ""}, "the run has no server"),
        ({"server-key": ""}, "has a server but no server-key"),
        ({"server-token-file": "/nowhere"}, "/nowhere: cannot be read"),
        ({"server-root": "/nowhere"}, "/nowhere: cannot be read"),
    ],
)
def test_a_run_without_what_it_needs_ends_before_it_begins(
    both: Parties, tmp_path: Path, config: RunConfig, change: dict[str, str], words: str
) -> None:
    with pytest.raises(FedspkError, match=words):
        run_app(tmp_path / "run", config, {**both.run_config(), **change}, {}, 2)
    assert both.numbers() == []


def test_an_encrypted_key_needs_its_passphrase_file(both: Parties, tmp_path: Path) -> None:
    files = {"root": both.root, "token": both.token, "key": tmp_path / "sealed.pem"}
    save_key(files["key"], load_key(both.key, lambda _: b""), b"a long passphrase")
    with pytest.raises(FedspkError, match="is encrypted; name the file of its passphrase"):
        MainServer.open(both.address, tmp_path / "a", **files)
    secret = tmp_path / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text("a long passphrase\n")
    MainServer.open(both.address, tmp_path / "b", **files, passphrase=secret)


def test_statistics_that_stay_behind_are_no_whole_model(both: Parties, tmp_path: Path) -> None:
    config = tiny_config(encoder="tdnn", encoder_params={"embedding_dim": 8})
    store, _ = tiny_store(tmp_path / "store", config)
    with pytest.raises(FedspkError, match="running statistics"):
        both.handover(tmp_path / "versions", config, store)
