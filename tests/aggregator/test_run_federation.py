from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from aggregator.checkpoint import load_checkpoint
from aggregator.federation import run_federation
from aggregator.rounds import WeightedMean
from fedspk.errors import FedspkError
from fedspk.files import read_json
from fedspk.rounds import RunConfig
from fedspk.weights import WeightStore
from simulations.executors import SerialExecutor
from simulations.grid import LocalGrid

SIZE = 5


class Fleet:
    """Toy devices 0 .. n - 1 (see `toy_client`) with their store and checkpoint folder."""

    def __init__(self, folder: Path, nodes: list[dict] | int, grid_type=LocalGrid) -> None:
        configs = [{}] * nodes if isinstance(nodes, int) else nodes
        self.folder = folder
        self.store = WeightStore(folder / "store")
        self.initial = self.store.put(np.linspace(-1, 1, SIZE).astype(np.float32))
        self.grid = grid_type(
            "toy_client:app",
            configs,
            SerialExecutor(),
            run_config={"store": str(folder / "store")},
        )

    def run(self, on_round=None, **changes):
        self.config = RunConfig().changed(secure=None, **changes)
        return run_federation(
            self.grid,
            self.config,
            self.store,
            self.folder / "run",
            initial=self.initial,
            on_round=on_round,
        )


def test_two_rounds_are_those_of_algorithm_1_by_hand(tmp_path):
    fleet = Fleet(tmp_path, 3)
    result = fleet.run(rounds=2, server_learning_rate=0.8)
    weights, targets = np.array([1.0, 2.0, 3.0]), np.arange(3.0)
    model = np.linspace(-1, 1, SIZE)
    for _ in range(2):
        deltas = 0.5 * (targets[:, None] - model)
        model = model + 0.8 * (weights[:, None] * deltas).sum(0) / weights.sum()
    np.testing.assert_allclose(fleet.store.get(result.last_model), model, rtol=1e-6)


def test_every_round_is_recorded_with_the_bytes_of_a_fleet(tmp_path):
    told = []
    fleet = Fleet(tmp_path, 4)
    result = fleet.run(told.append, rounds=2, clients_per_round=3, sampling="random")
    assert tuple(told) == result.history
    start, first, second = result.history
    size = SIZE * 4
    assert [r.round for r in result.history] == [0, 1, 2]
    assert (start.asked, start.bytes_down, start.bytes_up) == (0, 4 * size, 0)
    assert (first.asked, first.answered, first.bytes_up) == (3, 3, 3 * size)
    assert first.bytes_down == 4 * size  # trained from what they held, fetched the new one
    assert (first.steps, first.training_seconds) == (3, 3 * 0.25 + 4 * 0.5)
    assert second.train_loss == 0.5
    assert second.validation_loss is not None
    assert result.bytes_up == 6 * size


def test_batches_take_turns_and_stay_together(tmp_path):
    fleet = Fleet(tmp_path, 5)
    fleet.run(rounds=4, clients_per_round=2, evaluate_every=0)
    state = load_checkpoint(tmp_path / "run", fleet.config, fleet.initial)
    assert sorted(map(len, state.batches)) == [2, 3]
    assert [r.asked for r in state.history[1:]] == [len(b) for b in state.batches] * 2


def test_a_model_is_fetched_to_train_when_nobody_validates(tmp_path):
    changes = {"clients_per_round": 3, "sampling": "random", "evaluate_every": 0}
    result = Fleet(tmp_path, 4).run(rounds=2, **changes)
    assert [r.bytes_down for r in result.history] == [0, 3 * SIZE * 4, 3 * SIZE * 4]
    assert result.model == result.last_model
    assert result.best_round == 2


@pytest.mark.parametrize("fault", ["raise", "nan", "short", "cut", "gone"])
def test_a_failing_device_is_counted_and_the_round_goes_on(tmp_path, fault):
    nodes = [{}, {"fault": fault, "fault_round": 1}, {}]
    result = Fleet(tmp_path, nodes).run(rounds=2)
    first, second = result.history[1:]
    assert (first.asked, first.answered) == (3, 2)
    (failure,) = first.failures
    assert failure.startswith("device-0001: ")
    assert (second.answered, second.failures) == (3, ())


def test_devices_that_agree_to_the_bit_all_count(tmp_path):
    fleet = Fleet(tmp_path, [{"still": True}, {"still": True}, {}])
    fleet.initial = fleet.store.put(np.zeros(SIZE, np.float32))  # what a still device returns
    result = fleet.run(rounds=2)
    assert [record.answered for record in result.history] == [0, 3, 3]
    assert fleet.initial in fleet.store
    assert len(list(fleet.store.root.iterdir())) <= 3  # the first, the best and the last model


def test_an_update_is_forgotten_as_soon_as_it_is_added(tmp_path, monkeypatch):
    fleet, held = Fleet(tmp_path, 4), []

    def counting(mean, delta, weight):
        held.append(len(list(fleet.store.root.iterdir())))
        add(mean, delta, weight)

    add = WeightedMean.add
    monkeypatch.setattr(WeightedMean, "add", counting)
    fleet.run(rounds=1)
    assert held == [5, 4, 3, 2]


@pytest.mark.parametrize("fault", ["endless", "nameless"])
def test_a_reply_that_is_nonsense_costs_its_device_only(tmp_path, fault):
    result = Fleet(tmp_path, [{}, {"fault": fault}, {}]).run(rounds=1)
    assert result.history[1].answered == 2
    (failure,) = result.history[1].failures
    assert failure.startswith("device-0001: ")


class _SilentNodeGrid(LocalGrid):
    """Node 3 takes messages and never answers."""

    asked = 0

    def push_messages(self, messages):
        messages = list(messages)
        self.asked += sum(message.metadata.dst_node_id == 3 for message in messages)
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            if reply.metadata.src_node_id != 3:
                yield reply


def test_a_silent_node_is_left_alone_for_some_rounds(tmp_path):
    fleet = Fleet(tmp_path, 3, _SilentNodeGrid)
    result = fleet.run(rounds=12, round_timeout_seconds=0.05)
    assert [record.answered for record in result.history[1:]] == [2] * 12
    assert fleet.grid.asked == 2


def test_a_checkpoint_names_only_vectors_that_are_on_the_disk(tmp_path, monkeypatch):
    synced = set()
    fsync = os.fsync

    def noting(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check(record):
        state = read_json(tmp_path / "run" / "checkpoint.json")["state"]
        for digest in (state["model"], state["initial"], *state["optimiser"].values()):
            assert fleet.store.path(digest).stat().st_ino in synced

    monkeypatch.setattr(os, "fsync", noting)
    fleet = Fleet(tmp_path, 3)
    fleet.run(check, rounds=2, optimiser="fedadam")


def test_too_few_replies_end_the_run_with_the_reason(tmp_path):
    fleet = Fleet(tmp_path, [{"fault": "raise"}, {"fault": "raise"}, {}])
    with pytest.raises(FedspkError, match=r"Round 2: 1 of 3 .* 2 are needed.*\(ValueError\)"):
        fleet.run(rounds=2)


def test_a_round_with_too_few_replies_leaves_the_model_as_it_was(tmp_path):
    lost = {"fault": "raise", "fault_round": 2}
    fleet = Fleet(tmp_path, [lost, lost, {}])
    result = fleet.run(rounds=3)
    failed = result.history[2]
    assert [record.failure is None for record in result.history] == [True, True, False, True]
    assert "1 of 3 devices answered" in failed.failure
    assert failed.validation_loss is None  # that model has a loss already
    assert result.last_model == Fleet(tmp_path / "two", 3).run(rounds=2).last_model


def test_a_node_that_cannot_say_who_it_is_takes_no_part(tmp_path):
    result = Fleet(tmp_path, [{}, {"fault": "mute"}, {}]).run(rounds=1)
    assert result.history[1].asked == 2
    assert result.history[1].failures == ("the device failed (ValueError); its own log says why",)


def test_the_run_stops_when_patience_ends_and_returns_the_best_round(tmp_path):
    # The devices' mean loss is lowest at 1.0; a step of 3 overshoots it ever further.
    fleet = Fleet(tmp_path, 3)
    result = fleet.run(rounds=50, patience=2, server_learning_rate=4.5)
    losses = [record.validation_loss for record in result.history]
    assert result.rounds < 50
    assert result.rounds == result.best_round + 2
    assert losses[result.best_round] == min(losses)
    model = fleet.store.get(result.model).astype(np.float64)
    loss = np.mean([np.mean((model - k) ** 2) for k in range(3)])
    assert loss == pytest.approx(min(losses))


class _PowerCutError(Exception):
    pass


@pytest.mark.parametrize("optimiser", ["fedavg", "fedavgm", "fedadam"])
@pytest.mark.parametrize("last_round", [0, 1, 3])
def test_an_interrupted_run_continues_with_the_same_bits(tmp_path, optimiser, last_round):
    changes = {"rounds": 4, "optimiser": optimiser, "clients_per_round": 2}

    def cut_power(record):
        if record.round == last_round:
            raise _PowerCutError

    whole = Fleet(tmp_path / "whole", 4).run(**changes)
    fleet = Fleet(tmp_path / "cut", 4)
    with pytest.raises(_PowerCutError):
        fleet.run(cut_power, **changes)
    rounds_after = []
    resumed = fleet.run(lambda record: rounds_after.append(record.round), **changes)
    assert rounds_after == list(range(last_round + 1, 5))
    assert (resumed.model, resumed.last_model) == (whole.model, whole.last_model)
    assert [r.validation_loss for r in resumed.history] == [
        r.validation_loss for r in whole.history
    ]
    assert [r.bytes_down for r in resumed.history] == [r.bytes_down for r in whole.history]


def test_a_failure_in_a_round_leaves_the_round_before(tmp_path, monkeypatch):
    fleet = Fleet(tmp_path, 3)
    monkeypatch.setattr(fleet.store, "put", _full_disk(fleet.store.put, after=1))
    with pytest.raises(FedspkError, match="disk is full"):
        fleet.run(rounds=3)
    monkeypatch.undo()
    whole = Fleet(tmp_path / "whole", 3).run(rounds=3)
    assert fleet.run(rounds=3).last_model == whole.last_model


def _full_disk(put, after):
    calls = []

    def limited(vector):
        calls.append(1)
        if len(calls) > after:
            raise FedspkError("the disk is full")
        return put(vector)

    return limited


def test_a_finished_run_can_go_on_for_more_rounds(tmp_path):
    fleet = Fleet(tmp_path / "a", 3)
    fleet.run(rounds=2)
    assert fleet.run(rounds=4).last_model == Fleet(tmp_path / "b", 3).run(rounds=4).last_model


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    fleet = Fleet(tmp_path, 3)
    fleet.run(rounds=1)
    with pytest.raises(FedspkError, match="another configuration"):
        fleet.run(rounds=1, server_learning_rate=0.5)
    (tmp_path / "run" / "checkpoint.json").write_text("{}")
    with pytest.raises(FedspkError, match="is not a checkpoint"):
        fleet.run(rounds=1)


def test_the_store_keeps_only_what_the_run_needs(tmp_path):
    fleet = Fleet(tmp_path, 3)
    result = fleet.run(rounds=6, optimiser="fedadam", server_learning_rate=0.05)
    kept = {path.stem for path in (tmp_path / "store").iterdir()}
    assert {fleet.initial, result.model, result.last_model} <= kept
    assert len(kept) <= 5  # and FedAdam's two moments


class _ChangingGrid(LocalGrid):
    """Some nodes are away."""

    away = frozenset()

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.away]


def test_nodes_that_claim_one_name_are_left_out_while_there_are_two(tmp_path):
    fleet = Fleet(tmp_path, [{}, {}, {}, {"partition-id": 1}], _ChangingGrid)
    fleet.grid.away = {5}

    def change(record):
        fleet.grid.away = {1: (), 2: {5}}.get(record.round, fleet.grid.away)

    result = fleet.run(change, rounds=3)
    assert [record.asked for record in result.history[1:]] == [3, 2, 3]
    (warning,) = result.history[2].failures
    assert warning.startswith("device-0001: left out, claimed by two nodes")
    assert [record.failures for record in result.history if record.round != 2] == [()] * 3


def test_a_run_in_which_every_name_is_claimed_twice_ends(tmp_path):
    fleet = Fleet(tmp_path, [{"partition-id": 1}, {"partition-id": 1}])
    with pytest.raises(FedspkError, match="no device is left; device-0001: left out, claimed"):
        fleet.run(rounds=1)
