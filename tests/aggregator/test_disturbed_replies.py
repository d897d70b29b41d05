"""Replies that cross the grid twice, in another order, late, again after their time, or cut off."""

from __future__ import annotations

import random

import numpy as np
import pytest
from secure_toy_fleet import STEP, CountingGrid, Fleet, expected

from fedspk.rounds import RECORD

CUT = "device-0002"
CUT_NODE = 4


class DuplicatingGrid(CountingGrid):
    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            yield from (reply, reply)


class ReorderingGrid(CountingGrid):
    order = random.Random(1)

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        self.order.shuffle(replies)
        return replies


class DelayingGrid(CountingGrid):
    """Every other reply comes with a later request for replies."""

    held = ()

    def pull_messages(self, message_ids):
        due, fresh = self.held, list(super().pull_messages(message_ids))
        self.held = fresh[::2]
        return [*fresh[1::2], *due]


class ReplayingGrid(CountingGrid):
    """With every reply come those of all stages and rounds before."""

    seen = ()

    def pull_messages(self, message_ids):
        fresh = list(super().pull_messages(message_ids))
        self.seen = (*self.seen, *fresh)
        return self.seen


@pytest.mark.parametrize("grid", [DuplicatingGrid, ReorderingGrid, DelayingGrid, ReplayingGrid])
def test_a_run_whose_replies_come_oddly_has_the_same_bits(tmp_path, grid):
    changes = {"rounds": 2, "update_transport": "message"}
    calm = Fleet(tmp_path / "calm", 6).run(**changes)
    odd = Fleet(tmp_path / "odd", 6, grid).run(**changes)
    assert odd.last_model == calm.last_model
    assert [r.validation_loss for r in odd.history] == [r.validation_loss for r in calm.history]
    assert all(not record.failures for record in odd.history)


class CuttingGrid(CountingGrid):
    """A field of one device's replies of a stage loses its last bytes in round 1."""

    stage = field = ""
    lost = 1

    def push_messages(self, messages):
        messages = list(messages)
        for name, message in zip(super().push_messages(messages), messages, strict=True):
            meta, reply = message.metadata, self._replies[name]
            if (meta.dst_node_id, meta.message_type, meta.group_id) == (CUT_NODE, self.stage, "1"):
                record = reply.content[RECORD]
                record[self.field] = record[self.field][: -self.lost]
            yield name


@pytest.mark.parametrize("lost", [1, 4, 10**9])
@pytest.mark.parametrize(
    ("stage", "field", "in_sum"),
    [
        ("query.offer", "body", False),
        ("query.share", "body", False),
        ("train.masked", "body", False),
        ("train.masked", "vector", False),
        ("query.survivors", "body", True),
        ("query.unmask", "body", True),
    ],
)
def test_a_reply_that_is_cut_off_counts_as_none(tmp_path, stage, field, in_sum, lost):
    fleet = Fleet(tmp_path, 6, CuttingGrid)
    fleet.grid.stage, fleet.grid.field, fleet.grid.lost = stage, field, lost
    result = fleet.run(rounds=2, evaluate_every=0, update_transport="message")
    first, second = result.history[1:]
    (failure,) = first.failures
    assert failure.startswith(f"{CUT}: ")
    assert (first.answered, second.answered, second.failures) == (6 if in_sum else 5, 6, ())
    there = [index for index in range(6) if in_sum or index != 2]
    np.testing.assert_allclose(fleet.model(result), expected([there, range(6)]), atol=3 * STEP)
