"""Whole runs of secure sums over toy devices: same numbers, dropouts at every stage, retries."""

from __future__ import annotations

import numpy as np
import pytest
from secure_toy_fleet import NAMES, SECURE, SIZE, STEP, CountingGrid, Fleet, expected

from aggregator.rounds import with_newcomers
from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig
from fedspk.secagg.keys import DeviceRegister


def test_two_rounds_are_those_of_algorithm_1_to_the_rounding(tmp_path):
    fleet = Fleet(tmp_path, 3)
    result = fleet.run(rounds=2, server_learning_rate=0.8)
    np.testing.assert_allclose(fleet.model(result), expected([range(3)] * 2, 0.8), atol=3 * STEP)
    start, first, second = result.history
    assert (first.asked, first.answered, first.steps) == (3, 3, 3)
    assert (first.train_loss, second.train_loss) == (1.0, 0.5)
    assert first.training_seconds == pytest.approx(3 * 0.25 + 3 * 0.5)
    loss = np.mean([np.mean((np.linspace(-1, 1, SIZE) - k) ** 2) for k in range(3)])
    assert start.validation_loss == pytest.approx(loss, abs=1e-6)
    assert [each.purpose for each in first.secure] == ["train", "evaluate"]
    training = first.secure[0]
    assert (training.cohorts, training.survivors, training.attempts) == ((3,), (3,), 1)
    assert (training.discarded, training.clipped) == (0, 0.0)
    stages = ["offer", "share", "train", "survivors", "unmask", "sum"]
    assert sorted(training.seconds) == sorted(stages)
    assert training.bytes_up > 3 * SIZE * 4


@pytest.mark.parametrize("transport", ["file", "message"])
def test_every_stage_is_told_and_no_masked_vector_stays(tmp_path, transport):
    told = []
    fleet = Fleet(tmp_path, 3)
    fleet.run(on_stage=told.append, rounds=1, update_transport=transport)
    assert [(s.purpose, s.name, s.asked, s.answered) for s in told if s.round == 1][:6] == [
        ("train", "offer", 3, 3),
        ("train", "share", 3, 3),
        ("train", "train", 3, 3),
        ("train", "survivors", 3, 3),
        ("train", "unmask", 3, 3),
        ("train", "sum", 1, 1),
    ]
    assert not list(fleet.store.root.glob("*.bin"))


def test_keys_for_the_next_round_come_with_the_last_message_of_a_round(tmp_path):
    fleet = Fleet(tmp_path, 6)
    fleet.run(rounds=6, clients_per_round=3, evaluate_every=3)
    # Six devices once for their first training, and once for the first validation.
    assert fleet.grid.sent["query.offer"] == 12
    assert fleet.grid.sent["query.share"] == 6 * 3 + 3 * 6


def test_large_updates_are_clipped_and_the_share_is_told(tmp_path):
    result = Fleet(tmp_path, 4).run(rounds=1, secure={"norm": 1.0})
    training = result.history[1].secure[0]
    # Device 0 has 0.5 (0 - linspace), of norm 0.79; the others are longer.
    assert training.clipped == 0.75


STAGES = ["query.offer", "query.share", "train.masked", "query.survivors", "query.unmask"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_device_that_fails_at_a_stage_is_counted_and_the_round_goes_on(tmp_path, stage):
    fleet = Fleet(tmp_path, [{}, {}, {}, {}, {"fails-at": stage, "fails-in": 1}])
    result = fleet.run(rounds=2, evaluate_every=2)
    first, second = result.history[1:]
    in_sum = stage in STAGES[3:]
    assert (first.asked, first.answered) == (5, 5 if in_sum else 4)
    assert any(text.startswith("device-0004: ") for text in first.failures)
    assert (second.answered, second.failures) == (5, ())
    cohorts = [range(5 if in_sum else 4), range(5)]
    np.testing.assert_allclose(fleet.model(result), expected(cohorts), atol=3 * STEP)


def test_a_sum_that_too_many_fail_is_tried_again_with_other_devices(tmp_path):
    lost = {"fails-at": "train.masked", "fails-in": 1}
    batches = with_newcomers((), NAMES[:9], RunConfig(clients_per_round=4))
    nodes = [lost if name in batches[0][:3] else {} for name in NAMES[:9]]
    fleet = Fleet(tmp_path, nodes)
    result = fleet.run(rounds=4, clients_per_round=4, evaluate_every=0)
    first, *later = result.history[1:]
    assert first.secure[0].attempts == 2
    assert first.answered == first.asked == len(batches[0])
    assert len([text for text in first.failures if "ValueError" in text]) == 3
    assert [(each.secure[0].attempts, each.failures) for each in later] == [(1, ())] * 3


class _AwayGrid(CountingGrid):
    """Some nodes are not connected in round 1, and say so by being absent from the list."""

    away: frozenset[int] = frozenset()

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if node not in self.away]


def test_a_batch_that_is_away_is_passed_over_and_keys_for_a_later_round_do_not_hinder(tmp_path):
    batches = with_newcomers((), NAMES[:6], RunConfig(clients_per_round=2))
    fleet = Fleet(tmp_path, 6, _AwayGrid)

    def leave(record):
        absent = {1: batches[1], 2: (), 3: batches[0]}.get(record.round, ())
        fleet.grid.away = frozenset(2 + int(name[-4:]) for name in absent)

    result = fleet.run(leave, rounds=6, clients_per_round=2, evaluate_every=0)
    assert [record.answered for record in result.history[1:]] == [2] * 6
    assert all(record.secure[0].attempts == 1 for record in result.history[1:])
    assert all(not record.failures for record in result.history)


def test_a_sum_over_one_device_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(FedspkError, match=r"needs two devices or more.*--no-secure"):
        Fleet(tmp_path, 1).run(rounds=1)


def test_a_device_that_the_register_does_not_know_takes_no_part(tmp_path):
    fleet = Fleet(tmp_path, 4)
    known = DeviceRegister.load(fleet.register).keys
    DeviceRegister({name: key for name, key in known.items() if name != "device-0003"}).save(
        fleet.register
    )
    result = fleet.run(rounds=1)
    assert result.history[1].answered == 3
    assert "device-0003: 'device-0003' is not in the device register." in result.history[1].failures


def test_a_secure_run_without_a_register_is_refused(tmp_path):
    fleet = Fleet(tmp_path, 3)
    fleet.register = None
    with pytest.raises(FedspkError, match="needs the register"):
        fleet.run(rounds=1)


class _PowerCutError(Exception):
    pass


@pytest.mark.parametrize("last_round", [0, 1, 3])
def test_an_interrupted_run_continues_with_the_same_bits(tmp_path, last_round):
    changes = {"rounds": 4, "optimiser": "fedadam", "clients_per_round": 3}

    def cut_power(record):
        if record.round == last_round:
            raise _PowerCutError

    whole = Fleet(tmp_path / "whole", 6).run(**changes)
    fleet = Fleet(tmp_path / "cut", 6)
    with pytest.raises(_PowerCutError):
        fleet.run(cut_power, **changes)
    resumed = fleet.run(**changes)
    assert (resumed.model, resumed.last_model) == (whole.model, whole.last_model)
    assert [r.validation_loss for r in resumed.history] == [
        r.validation_loss for r in whole.history
    ]


@pytest.mark.parametrize("stage", ["offer", "share", "train", "survivors", "unmask", "sum"])
def test_an_aggregator_that_dies_at_a_stage_continues_with_the_same_bits(tmp_path, stage):
    def cut_power(done):
        if (done.round, done.purpose, done.name) == (1, "train", stage):
            raise _PowerCutError

    whole = Fleet(tmp_path / "whole", 4).run(rounds=2)
    fleet = Fleet(tmp_path / "cut", 4)
    with pytest.raises(_PowerCutError):
        fleet.run(on_stage=cut_power, rounds=2)
    assert fleet.run(rounds=2).last_model == whole.last_model
    assert not list(fleet.store.root.glob("*.bin"))


class _SilentNodeGrid(CountingGrid):
    """Node 3 takes messages and never answers, but for its name."""

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            named = reply.has_content() and "device" in reply.content["fedspk"]
            if named or reply.metadata.src_node_id != 3:
                yield reply


def test_a_silent_device_costs_one_timeout_a_round(tmp_path):
    fleet = Fleet(tmp_path, 5, _SilentNodeGrid)
    secure = {**SECURE, "stage_timeout_seconds": 0.05}
    result = fleet.run(rounds=2, evaluate_every=0, secure=secure)
    assert [record.answered for record in result.history[1:]] == [4, 4]
    assert result.history[1].failures == ("device-0001: no reply in time",)


def test_a_masked_vector_is_forgotten_as_soon_as_it_is_added(tmp_path):
    held = []

    class LookingGrid(CountingGrid):
        def pull_messages(self, message_ids):
            for reply in super().pull_messages(message_ids):
                held.append(len(list(fleet.store.root.glob("*.bin"))))
                yield reply

    fleet = Fleet(tmp_path, 4, LookingGrid)
    fleet.run(rounds=1, evaluate_every=0)
    assert held[-16:] == [0] * 4 + [4, 3, 2, 1] + [0] * 8


def test_a_round_in_cohorts_has_the_same_mean(tmp_path):
    fleet = Fleet(tmp_path, 9)
    result = fleet.run(rounds=1, secure={**SECURE, "cohort_size": 3})
    training, validation = result.history[1].secure
    assert training.cohorts == validation.cohorts == (3, 3, 3)
    np.testing.assert_allclose(fleet.model(result), expected([range(9)]), atol=9 * STEP)


def test_a_cohort_whose_mean_honest_devices_cannot_have_made_does_not_count(tmp_path, poison):
    poison(cohort=1)
    fleet = Fleet(tmp_path, 9)
    result = fleet.run(rounds=1, secure={**SECURE, "cohort_size": 3})
    record = result.history[1]
    assert record.secure[0].discarded == 1
    assert (record.asked, record.answered) == (9, 6)
    assert any("cohort 1: " in text for text in record.failures)
    members = fleet.state().batches[0]
    honest = [int(name[-4:]) for k, name in enumerate(members) if k % 3 != 1]
    np.testing.assert_allclose(fleet.model(result), expected([honest]), atol=9 * STEP)


def test_noise_hides_the_figures_and_ends_the_run_at_its_budget(tmp_path):
    privacy = {"noise_multiplier": 4.0, "epsilon": 3.0, "delta": 1e-5}
    secure = {"norm": 10.0, "privacy": privacy}
    fleet = Fleet(tmp_path, 6)
    result = fleet.run(rounds=2, evaluate_every=0, secure=secure)
    record = result.history[1]
    assert (record.train_loss, record.steps, record.secure[0].clipped) == (None, 0, None)
    assert "epsilon" in result.privacy
    with pytest.raises(FedspkError, match="over the budget"):
        fleet.run(rounds=100, evaluate_every=0, secure=secure)
    assert 2 < fleet.state().round < 100
