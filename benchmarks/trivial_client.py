"""The trivial client of `benchmarks/federation.py`: its delta is a constant."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedspk.rounds import RECORD, DescribeReply, TrainReply, TrainRequest
from fedspk.weights import WeightStore

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say who the device is."""
    return _reply(message, DescribeReply(_name(context)).to_record())


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return a delta of 0.001 everywhere, a little different on each device."""
    request = TrainRequest.from_record(message.content[RECORD])
    store = _store(str(context.run_config["store"]))
    delta = np.full_like(store.get(request.model), 1e-3)
    delta[0] += int(context.node_config["partition-id"])
    reply = TrainReply(_name(context), 1.0, 0.0, 1, 0.0, store.put(delta), b"")
    return _reply(message, reply.to_record())


def _name(context: Context) -> str:
    return f"device-{context.node_config['partition-id']:05d}"


@cache
def _store(folder: str) -> WeightStore:
    return WeightStore(Path(folder))


def _reply(message: Message, record: dict) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord(record)}), reply_to=message)
