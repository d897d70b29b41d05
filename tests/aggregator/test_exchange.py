from __future__ import annotations

import time

from flwr.app import ConfigRecord, Error, Message, RecordDict

from aggregator.exchange import Failure, exchange
from fedspk.rounds import RECORD, DescribeReply, DescribeRequest
from simulations.executors import SerialExecutor
from simulations.grid import LocalGrid


class _LossyGrid(LocalGrid):
    """Replies come one at a time, the last node's never."""

    def pull_messages(self, message_ids):
        waiting = sorted(set(message_ids) & set(self._replies))
        return super().pull_messages(waiting[:1]) if len(waiting) > 1 else []


class _DeadNodeGrid(LocalGrid):
    """Flower's reply for a dead node carries the server's id, not the node's."""

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            if reply.metadata.src_node_id == 2:
                dead = Message(Error(6, "node\n  unavailable"), reply_to=reply)
                dead.metadata.__dict__["_src_node_id"] = 1
                dead.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
                yield dead
            else:
                yield reply


class _SilentRecordGrid(LocalGrid):
    """Replies carry records that are not ours."""

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            reply.content = RecordDict({"other": ConfigRecord({"x": 1})})
            yield reply


def _describe(grid, timeout=5.0):
    requests = dict.fromkeys(grid.get_node_ids(), DescribeRequest(1))
    answers = list(
        exchange(grid, "query.describe", requests, DescribeReply, group="1", timeout=timeout)
    )
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    return dict(answer for answer in answers if not isinstance(answer, Failure)), failures


def test_replies_may_trickle_in_and_a_silent_node_is_a_failure_after_the_timeout():
    started = time.monotonic()
    replies, failures = _describe(_LossyGrid("toy_client:app", [{}] * 3, SerialExecutor()), 0.3)
    assert sorted(replies) == [2, 3]
    assert [(each.node_id, each.reason) for each in failures] == [(4, "no reply in time")]
    assert 0.3 <= time.monotonic() - started < 5


def test_a_dead_node_s_error_is_counted_for_the_node_that_was_asked():
    replies, failures = _describe(_DeadNodeGrid("toy_client:app", [{}] * 2, SerialExecutor()))
    assert list(replies) == [3]
    assert [(each.node_id, each.reason) for each in failures] == [(2, "node unavailable")]


class _EchoingGrid(LocalGrid):
    """Every reply comes twice, and with a stranger's."""

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            stranger = Message(Error(6, "who?"), reply_to=reply)
            stranger.metadata.__dict__["_reply_to_message_id"] = "message-99"
            yield from (reply, stranger, reply)


def test_replies_that_nobody_asked_for_are_ignored():
    replies, failures = _describe(_EchoingGrid("toy_client:app", [{}] * 2, SerialExecutor()))
    assert (sorted(replies), failures) == ([2, 3], [])


def test_a_reply_without_our_record_is_a_failure():
    replies, failures = _describe(_SilentRecordGrid("toy_client:app", [{}], SerialExecutor()))
    assert not replies
    assert failures[0].reason == f"the reply carries no {RECORD} record"


def test_asking_nobody_sends_nothing():
    grid = LocalGrid("toy_client:app", [{}], SerialExecutor())
    assert list(exchange(grid, "train", {}, DescribeReply, group="1", timeout=1.0)) == []


class _LateGrid(LocalGrid):
    """Hands out one reply a pull, and notes how many were still on their way."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.left = []

    def pull_messages(self, message_ids):
        replies = super().pull_messages(sorted(set(message_ids) & set(self._replies))[:1])
        self.left.append(len(self._replies))
        return replies


def test_each_reply_is_there_before_the_next_is_fetched():
    grid = _LateGrid("toy_client:app", [{}] * 3, SerialExecutor())
    requests = dict.fromkeys(grid.get_node_ids(), DescribeRequest(1))
    answers = exchange(grid, "query.describe", requests, DescribeReply, group="1", timeout=5.0)
    left = []
    for _ in answers:
        left.append(grid.left[-1])
    assert left == [2, 1, 0]


class _FullGrid(LocalGrid):
    """Takes no message for node 3."""

    def push_messages(self, messages):
        return super().push_messages(m for m in messages if m.metadata.dst_node_id != 3)


def test_a_message_that_cannot_be_sent_is_a_failure_at_once():
    replies, failures = _describe(_FullGrid("toy_client:app", [{}] * 3, SerialExecutor()), 60.0)
    assert sorted(replies) == [2, 4]
    assert [(each.node_id, each.is_silent) for each in failures] == [(3, True)]
