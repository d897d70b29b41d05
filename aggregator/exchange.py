"""Messages out, replies in: the one place where the aggregator touches a Flower grid."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedspk.errors import FedspkError
from fedspk.rounds import RECORD, DescribeReply, EvaluateReply, RecordValue, TrainReply

_SHORTEST_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.5

Reply = TypeVar("Reply", DescribeReply, TrainReply, EvaluateReply)


@dataclass(frozen=True)
class Failure:
    """A node that gave no usable reply, and why, in one line."""

    node_id: int
    reason: str
    is_silent: bool = False


def ask(
    grid: Grid,
    message_type: str,
    nodes: Iterable[int],
    record: Mapping[str, RecordValue],
    reply_type: type[Reply],
    *,
    group: str,
    timeout: float,
) -> tuple[dict[int, Reply], list[Failure]]:
    """Send the same record to some nodes and return what they answer, by node.

    A node that fails, answers nonsense or stays silent for `timeout` seconds is a `Failure`.
    """
    nodes = list(nodes)
    messages = [
        Message(
            RecordDict({RECORD: ConfigRecord(dict(record))}), node, message_type, group_id=group
        )
        for node in nodes
    ]
    raw = _exchange(grid, messages, timeout)
    replies: dict[int, Reply] = {}
    failures: list[Failure] = []
    for node in nodes:
        reply = raw.pop(node, None)
        if reply is None:
            failures.append(Failure(node, "no reply in time", is_silent=True))
            continue
        try:
            replies[node] = reply_type.from_record(_record(reply))
        except FedspkError as error:
            failures.append(Failure(node, str(error)))
    return replies, failures


def _exchange(grid: Grid, messages: list[Message], timeout: float) -> dict[int, Message]:
    """Return the replies by the node that was asked (a dead node's carry another's id)."""
    if not messages:
        return {}
    sent = set(grid.push_messages(messages))
    deadline = time.monotonic() + timeout
    waiting = {
        message.metadata.message_id: message.metadata.dst_node_id
        for message in messages
        if message.metadata.message_id in sent
    }
    replies: dict[int, Message] = {}
    pause = _SHORTEST_POLL_SECONDS
    while waiting:
        arrived = list(grid.pull_messages(list(waiting)))
        for reply in arrived:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:  # else nobody asked, or it has answered already
                replies[node] = reply
        if not waiting or time.monotonic() > deadline:
            break
        pause = _SHORTEST_POLL_SECONDS if arrived else min(2 * pause, _LONGEST_POLL_SECONDS)
        time.sleep(pause)
    return replies


def _record(reply: Message) -> Mapping[str, object]:
    if reply.has_error():
        raise FedspkError(_one_line(reply.error.reason))
    record = reply.content.get(RECORD)
    if not isinstance(record, ConfigRecord):
        raise FedspkError("the reply carries no fedspk record")
    return cast("Mapping[str, object]", record)


def _one_line(reason: str | None) -> str:
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return " ".join(lines)[:500] or "the device gave no reason"
