"""A ClientApp without a network: device k pulls the model towards the number k.

Node configuration: `fault` = "raise", "nan", "short", "cut", "gone", "mute", "endless" or
"nameless", in `fault_round` or always; `still` for a delta of zero.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedspk.rounds import (
    RECORD,
    DescribeReply,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)
from fedspk.weights import WeightStore

SIZE = 5
_ODD_UPDATES = {"gone": "0" * 64, "nameless": "../update"}
app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    if context.node_config.get("fault") == "mute":
        raise ValueError("no voice")
    return _reply(message, DescribeReply(_name(context)).to_record())


@app.train()
def train(message: Message, context: Context) -> Message:
    request = TrainRequest.from_record(message.content[RECORD])
    fault = context.node_config.get("fault", "")
    if request.round != context.node_config.get("fault_round", request.round):
        fault = ""
    if fault == "raise":
        raise ValueError("the battery is empty")
    context.state["rounds"] = ConfigRecord({"last": request.round})
    model = _store(context).get(request.model)
    delta = (0.5 * (_index(context) - model)).astype(np.float32)
    if fault == "nan":
        delta[0] = np.nan
    if fault == "short":
        delta = delta[1:]
    if context.node_config.get("still"):
        delta[:] = 0
    in_file = fault not in ("cut", *_ODD_UPDATES)
    reply = TrainReply(
        device=_name(context),
        weight=float(_index(context) + 1),
        loss=1.0 / request.round,
        steps=1,
        seconds=float("inf") if fault == "endless" else 0.25,
        update=_store(context).put(delta) if in_file else _ODD_UPDATES.get(fault, ""),
        delta=b"odd" if fault == "cut" else b"",
    )
    return _reply(message, reply.to_record())


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    request = EvaluateRequest.from_record(message.content[RECORD])
    model = _store(context).get(request.model)
    loss = float(np.mean((model.astype(np.float64) - _index(context)) ** 2))
    return _reply(message, EvaluateReply(_name(context), loss, 1, 0.5).to_record())


@app.query("rounds")
def rounds(message: Message, context: Context) -> Message:
    return _reply(message, dict(context.state["rounds"]))


def _index(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _name(context: Context) -> str:
    return f"device-{_index(context):04d}"


def _store(context: Context) -> WeightStore:
    return WeightStore(Path(str(context.run_config["store"])))


def _reply(message: Message, record: dict) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord(record)}), reply_to=message)
