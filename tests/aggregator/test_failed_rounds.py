"""Sums that cannot be finished: what is tried again, what never is, and how a run goes on."""

from __future__ import annotations

import os

import numpy as np
import pytest
from secure_toy_fleet import NAMES, SECURE, STEP, CountingGrid, Fleet, expected

from aggregator.robust import planned_cohorts
from aggregator.rounds import with_newcomers
from clients import secure
from fedspk.errors import FedspkError
from fedspk.rounds import RECORD, RunConfig, SumReply, SumShareRequest
from fedspk.secagg.ledger import spent_epsilon
from fedspk.secagg.messages import BOX_BYTES, Box, ShareRequest, SharesReply

LIAR = "device-0003"


class ListeningGrid(CountingGrid):
    """Notes the sums that devices are asked into: run, purpose, round, attempt, and the devices."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sums = {}

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "query.share":
                request = SumShareRequest.from_record(message.content[RECORD])
                share = ShareRequest.decode(request.body)
                names = [offer.device for offer in share.roster]
                self.sums[share.terms.instance, share.terms.cohort] = names
        return super().push_messages(messages)

    def attempts(self, purpose="train"):
        """The rounds and attempts of all sums, in order."""
        return [(i.round, i.attempt) for i, _ in self.sums if i.purpose == purpose]


def losing(stage, in_round, devices=(4, 5), count=6):
    """Configurations of toy devices of which some fail at a stage of a round."""
    lost = {"fails-at": stage, "fails-in": in_round}
    return [lost if index in devices else {} for index in range(count)]


@pytest.mark.parametrize("sampling", ["batches", "random"])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_sum_lost_at_the_unmasking_is_never_tried_again(tmp_path, sampling, failing):
    fleet = Fleet(tmp_path, losing("query.unmask", failing), ListeningGrid)
    result = fleet.run(rounds=3, evaluate_every=0, sampling=sampling)
    failed = result.history[failing]
    assert "no secure sum was finished in 1 attempt: A secret of device" in failed.failure
    assert (failed.asked, failed.answered, failed.secure) == (6, 0, ())
    assert failed.bytes_up > 0
    others = [record for record in result.history[1:] if record is not failed]
    assert [(record.failure, record.answered) for record in others] == [(None, 6)] * 2
    assert fleet.grid.attempts() == [(1, 0), (2, 0), (3, 0)]
    assert len({instance.run for instance, _ in fleet.grid.sums}) == 1
    np.testing.assert_allclose(fleet.model(result), expected([range(6)] * 2), atol=3 * STEP)


def test_a_sum_lost_at_the_unmasking_is_not_tried_again_with_spare_devices(tmp_path):
    batch = with_newcomers((), NAMES[:12], RunConfig(clients_per_round=6))[0]
    devices = [int(name[-4:]) for name in batch[:2]]
    fleet = Fleet(tmp_path, losing("query.unmask", 1, devices, 12), ListeningGrid)
    result = fleet.run(rounds=4, evaluate_every=0, clients_per_round=6)
    assert [record.failure is None for record in result.history] == [True, False, True, True, True]
    assert fleet.grid.attempts() == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert len({instance.run for instance, _ in fleet.grid.sums}) == 1


def test_the_optimiser_of_a_failed_round_stays(tmp_path):
    fleet = Fleet(tmp_path, losing("query.unmask", 2))
    states = []
    changes = {"rounds": 2, "evaluate_every": 0, "optimiser": "fedadam"}
    fleet.run(lambda _: states.append(fleet.state()), **changes)
    _, first, second = states
    assert (second.model, second.optimiser) == (first.model, first.optimiser)
    assert second.round == 2


def test_cohorts_that_were_finished_count_without_the_one_that_was_lost(tmp_path):
    batch = with_newcomers((), NAMES[:12], RunConfig())[0]
    lost, kept = batch[::2], [int(name[-4:]) for name in batch[1::2]]
    devices = [int(name[-4:]) for name in lost[:2]]
    fleet = Fleet(tmp_path, losing("query.unmask", 1, devices, 12), ListeningGrid)
    result = fleet.run(rounds=1, evaluate_every=0, secure={**SECURE, "cohort_size": 6})
    record = result.history[1]
    assert (record.failure, record.asked, record.answered) == (None, 12, 6)
    assert record.secure[0].attempts == 1
    np.testing.assert_allclose(fleet.model(result), expected([kept]), atol=9 * STEP)


def test_a_round_whose_sums_lack_too_many_devices_fails(tmp_path):
    batch = with_newcomers((), NAMES[:12], RunConfig())[0]
    devices = [int(batch[index][-4:]) for index in (0, 2, 4)]
    fleet = Fleet(tmp_path, losing("query.unmask", 1, devices, 12))
    result = fleet.run(
        rounds=2,
        evaluate_every=0,
        secure={**SECURE, "cohort_size": 6},
        minimum_reply_fraction=0.7,
    )
    first, second = result.history[1:]
    assert "6 of 12 devices answered and 9 are needed" in first.failure
    assert second.failure is None


def test_a_sum_lost_before_the_unmasking_fails_its_round_alone(tmp_path):
    fleet = Fleet(tmp_path, losing("query.share", 2, range(6)), ListeningGrid)
    result = fleet.run(rounds=3, evaluate_every=0)
    assert [record.failure is None for record in result.history] == [True, True, False, True]
    np.testing.assert_allclose(fleet.model(result), expected([range(6)] * 2), atol=3 * STEP)


def test_three_failed_rounds_in_a_row_end_the_run_which_can_be_continued(tmp_path):
    nodes = [{"fails-at": "query.unmask"} if index > 3 else {} for index in range(6)]
    fleet = Fleet(tmp_path, nodes)
    with pytest.raises(FedspkError, match=r"^3 rounds in a row failed.* Round 3: "):
        fleet.run(rounds=9, evaluate_every=0)
    state = fleet.state()
    assert (state.round, state.model, len(state.history)) == (3, fleet.initial, 4)
    mended = Fleet(tmp_path, 6, ListeningGrid)
    result = mended.run(rounds=5, evaluate_every=0)
    assert mended.grid.attempts() == [(4, 0), (5, 0)]
    np.testing.assert_allclose(mended.model(result), expected([range(6)] * 2), atol=3 * STEP)


def test_failed_rounds_with_others_between_them_do_not_end_a_run(tmp_path):
    nodes = [{"fails-at": "query.unmask", "fails-in": number} for number in (1, 1, 2, 2, 4, 4)]
    result = Fleet(tmp_path, nodes).run(rounds=5, evaluate_every=0)
    assert [record.round for record in result.history if record.failure] == [1, 2, 4]


def test_a_run_without_a_finished_round_is_an_error_each_time(tmp_path):
    fleet = Fleet(tmp_path, losing("query.unmask", 1))
    for _ in range(2):
        with pytest.raises(FedspkError, match=r"None of the run's 1 rounds .* Round 1: "):
            fleet.run(rounds=1)
    assert fleet.run(rounds=2).history[2].failure is None


def test_a_validation_that_is_lost_is_skipped_and_costs_no_patience(tmp_path):
    fleet = Fleet(tmp_path, losing("evaluate.masked", 2, range(6)), ListeningGrid)
    result = fleet.run(rounds=3, patience=1, server_learning_rate=0.5)
    lost = result.history[2]
    assert (lost.failure, lost.answered, lost.validation_loss) == (None, 6, None)
    assert lost.failures[-1].startswith("no validation: Round 2: no secure sum was finished")
    assert [record.validation_loss is None for record in result.history] == [False, False, True, 0]
    assert fleet.grid.attempts("evaluate")[-1] == (3, 0)


def test_a_validation_lost_at_the_unmasking_is_not_tried_again(tmp_path):
    fleet = Fleet(tmp_path, losing("query.unmask", 0), ListeningGrid)
    result = fleet.run(rounds=2)
    assert result.history[0].validation_loss is None
    assert fleet.grid.attempts("evaluate") == [(0, 0), (1, 0), (2, 0)]
    assert result.best_round == 2
    assert not result.verdict.published


class CrowdedGrid(CountingGrid):
    """Nodes that do not say who they are connect while the devices unmask round 1."""

    def get_node_ids(self):
        nodes = sorted(super().get_node_ids())
        return nodes if 12 <= self.sent["query.unmask"] < 18 else nodes[:6]


def test_a_round_is_kept_although_its_validation_finds_too_few_devices(tmp_path):
    silent = {"fails-at": "query.describe"}
    result = Fleet(tmp_path, [{}] * 6 + [silent] * 8, CrowdedGrid).run(rounds=3)
    first = result.history[1]
    assert (first.failure, first.answered, first.validation_loss) == (None, 6, None)
    assert first.failures[-1].startswith("no validation: Round 1: 6 of 14 devices answered")
    assert "6 of 14 devices answered" in result.history[2].failure
    assert [record.failure is None for record in result.history] == [True, True, False, False]


def test_a_failed_last_round_leaves_the_model_before_it_validated(tmp_path):
    fleet = Fleet(tmp_path, losing("train.masked", 2, range(6)))
    result = fleet.run(rounds=2, evaluate_every=2)
    assert result.history[1].validation_loss is None
    assert result.history[2].failure is not None
    assert result.history[2].validation_loss is not None


@pytest.fixture
def liar(monkeypatch):
    """One device's boxes do not open."""
    share = secure.SecureDevice.share

    def lie(self, request):
        reply = share(self, request)
        if self._identity.device != LIAR:
            return reply
        boxes = SharesReply.decode(reply.body).boxes
        bent = tuple(Box(box.index, os.urandom(BOX_BYTES)) for box in boxes)
        return SumReply(SharesReply(bent).encode())

    monkeypatch.setattr(secure.SecureDevice, "share", lie)


@pytest.mark.parametrize("evaluate_every", [0, 1])
@pytest.mark.parametrize(
    "changes", [{}, {"clients_per_round": 6}, {"clients_per_round": 6, "sampling": "random"}]
)
def test_a_device_that_deals_wrong_shares_takes_no_more_part(
    tmp_path, liar, evaluate_every, changes
):
    count = 12 if changes else 6
    fleet = Fleet(tmp_path, count, ListeningGrid)
    result = fleet.run(rounds=4, evaluate_every=evaluate_every, **changes)
    asked = [names for names in fleet.grid.sums.values() if LIAR in names]
    assert len(asked) == 1
    told = [sum(LIAR in text for text in record.failures) for record in result.history]
    first = next(index for index, count in enumerate(told) if count)
    assert told[first + 1 :] == [1] * (4 - first)
    assert len([record for record in result.history if record.failure]) == int(first > 0)
    for record in result.history[first + 1 :]:
        assert "left out, it has dealt wrong shares" in record.failures[0]


def test_a_run_that_continues_begins_without_suspects(tmp_path, liar):
    Fleet(tmp_path, 6).run(rounds=2, evaluate_every=0)
    fleet = Fleet(tmp_path, 6, ListeningGrid)
    result = fleet.run(rounds=4, evaluate_every=0)
    assert [record.failure is None for record in result.history[1:]] == [False, True, False, True]


def test_a_budget_spent_by_a_retry_keeps_what_is_finished(tmp_path):
    noise = 8.0
    epsilon = (spent_epsilon(noise, 1, 1e-5) + spent_epsilon(noise, 2, 1e-5)) / 2
    batch = with_newcomers((), NAMES[:12], RunConfig())[0]
    lost = [int(name[-4:]) for name in batch[1::2][:3]]
    fleet = Fleet(tmp_path, losing("query.survivors", 1, lost, 12), ListeningGrid)
    privacy = {"noise_multiplier": noise, "epsilon": epsilon, "delta": 1e-5}
    config = {"norm": 10.0, "cohort_size": 6, "privacy": privacy}
    result = fleet.run(rounds=1, evaluate_every=0, secure=config)
    record = result.history[1]
    assert (record.failure, record.asked, record.answered) == (None, 12, 6)
    assert any("over the budget" in text for text in record.failures)
    with pytest.raises(FedspkError, match="over the budget"):  # on a first attempt it ends the run
        fleet.run(rounds=2, evaluate_every=0, secure=config)


# --- a median of cohorts ---


@pytest.mark.parametrize(
    ("devices", "combination", "cohorts"),
    [(14, "mean", 1), (13, "median", 5), (14, "median", 7), (100, "trimmed_mean", 7)],
)
def test_seven_cohorts_are_planned_where_there_are_devices_for_them(devices, combination, cohorts):
    assert planned_cohorts(devices, combination) == cohorts


@pytest.mark.parametrize("combine", ["median", "trimmed_mean"])
def test_a_robust_mean_outlives_a_lost_and_a_discarded_cohort(tmp_path, poison, combine):
    batch = [int(name[-4:]) for name in with_newcomers((), NAMES, RunConfig())[0]]
    poison(cohort=1)
    fleet = Fleet(tmp_path, losing("query.unmask", 1, [batch[0]], 14), ListeningGrid)
    result = fleet.run(rounds=1, evaluate_every=0, secure={**SECURE, "combine": combine})
    record = result.history[1]
    assert (record.secure[0].cohorts, record.secure[0].discarded) == ((2,) * 6, 1)
    assert (record.failure, record.answered) == (None, 10)
    means = np.sort([expected([batch[k::7]]) for k in range(2, 7)], axis=0)
    robust = means[2] if combine == "median" else means[1:4].mean(axis=0)
    np.testing.assert_allclose(fleet.model(result), robust, atol=9 * STEP)


@pytest.mark.parametrize("stage", ["train.masked", "query.unmask"])
def test_a_median_of_four_cohorts_fails_its_round_alone(tmp_path, stage):
    fleet = Fleet(tmp_path, losing(stage, 1, [0], 10))
    result = fleet.run(rounds=2, evaluate_every=0, secure={**SECURE, "combine": "median"})
    first, second = result.history[1:]
    assert first.failure == "Round 1: 4 of 5 cohorts are left, and a median needs 5."
    assert (first.asked, first.answered) == (10, 8)
    assert second.failure is None
