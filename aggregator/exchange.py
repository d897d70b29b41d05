"""Messages out, replies in: the one place where the aggregator touches a Flower grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedspk.errors import FedspkError
from fedspk.rounds import LONG_VALUES, RECORD, Record

_SHORTEST_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.5
_REPLIES_AT_ONCE = 8  # in memory, where each can be as large as the model

Reply = TypeVar("Reply", bound=Record)


@dataclass(frozen=True)
class Failure:
    """A node that gave no usable reply, and why, in one line."""

    node_id: int
    reason: str
    is_silent: bool = False


def exchange(
    grid: Grid,
    message_type: str,
    requests: Mapping[int, Record],
    reply_type: type[Reply],
    *,
    group: str,
    timeout: float,
) -> Iterator[tuple[int, Reply] | Failure]:
    """Send each node its request and yield what each answers, as it comes.

    A node that fails, answers nonsense or stays silent for `timeout` seconds is a `Failure`.
    """
    waiting = _push(grid, message_type, requests, group)
    for unsent in requests.keys() - waiting.values():
        yield Failure(unsent, "the message could not be sent", is_silent=True)
    deadline = time.monotonic() + timeout
    pause = _SHORTEST_POLL_SECONDS
    while waiting:
        before = len(waiting)
        for reply in _pull(grid, list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:  # else nobody asked, or it has answered already
                yield _read(node, reply, reply_type)
        if not waiting or time.monotonic() > deadline:
            break
        arrived = len(waiting) < before
        pause = _SHORTEST_POLL_SECONDS if arrived else min(2 * pause, _LONGEST_POLL_SECONDS)
        time.sleep(pause)
    for silent in waiting.values():
        yield Failure(silent, "no reply in time", is_silent=True)


def _push(
    grid: Grid, message_type: str, requests: Mapping[int, Record], group: str
) -> dict[str, int]:
    """Return the node of each message that was sent, by the message's id."""
    messages = [
        Message(
            RecordDict({RECORD: ConfigRecord(dict(request.to_record()))}),
            node,
            message_type,
            group_id=group,
        )
        for node, request in requests.items()
    ]
    sent = set(grid.push_messages(messages)) if messages else set()
    ids = [(message.metadata.message_id, message.metadata.dst_node_id) for message in messages]
    return {name: node for name, node in ids if name in sent}


def _pull(grid: Grid, names: list[str]) -> Iterator[Message]:
    for start in range(0, len(names), _REPLIES_AT_ONCE):
        yield from grid.pull_messages(names[start : start + _REPLIES_AT_ONCE])


def _read(node: int, reply: Message, reply_type: type[Reply]) -> tuple[int, Reply] | Failure:
    """Return the reply for the node that was asked: a dead node's carries another's id."""
    try:
        return node, reply_type.from_record(_record(reply))
    except FedspkError as error:
        return Failure(node, str(error))


def _record(reply: Message) -> Mapping[str, object]:
    if reply.has_error():
        raise FedspkError(_one_line(reply.error.reason))
    record = reply.content.get(RECORD)
    if not isinstance(record, ConfigRecord):
        raise FedspkError("the reply carries no fedspk record")
    long = reply.content.get(LONG_VALUES)
    if not isinstance(long, ArrayRecord):
        return cast("Mapping[str, object]", record)
    return {**record, **{name: array.data for name, array in long.items()}}


def _one_line(reason: str | None) -> str:
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return " ".join(lines)[:500] or "the device gave no reason"
