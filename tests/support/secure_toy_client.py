"""A ClientApp without a network that takes part in secure sums: device k pulls the model towards k.

Node configuration: `folder` of the fleet's identities; `fails-at`, a message type at which the
device fails, in `fails-in` or in every round.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.enrolment import IDENTITY_FILE, REGISTER_FILE
from clients.secure import Contribution, SecureDevice
from fedspk.rounds import (
    RECORD,
    DescribeReply,
    MaskedEvaluateRequest,
    MaskedReply,
    MaskedTrainRequest,
    RunConfig,
    SumRequest,
    SumShareRequest,
)
from fedspk.secagg.client import DevicePolicy
from fedspk.store import BlobStore
from fedspk.weights import WeightStore

SECONDS = 0.25


class _FailingApp(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        node, meta = context.node_config, message.metadata
        if meta.message_type == node.get("fails-at") and int(meta.group_id) == int(
            node.get("fails-in", meta.group_id)
        ):
            raise ValueError("the battery is empty")
        return super().__call__(message, context)


app = _FailingApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    return _reply(message, DescribeReply(_name(context)).to_record())


@app.query("offer")
def offer(message: Message, context: Context) -> Message:
    request = SumRequest.from_record(message.content[RECORD])
    return _reply(message, _device(context).offer(request).to_record())


@app.query("share")
def share(message: Message, context: Context) -> Message:
    request = SumShareRequest.from_record(message.content[RECORD])
    return _reply(message, _device(context).share(request).to_record())


@app.train("masked")
def train(message: Message, context: Context) -> Message:
    request = MaskedTrainRequest.from_record(message.content[RECORD])

    def compute() -> Contribution:
        delta = (0.5 * (_index(context) - _store(context).get(request.model))).astype(np.float32)
        figures = {"weight": _index(context) + 1, "loss": 1.0 / request.round, "steps": 1}
        return Contribution({**figures, "seconds": SECONDS}, delta)

    return _masked(message, context, request, compute, "train")


@app.evaluate("masked")
def evaluate(message: Message, context: Context) -> Message:
    request = MaskedEvaluateRequest.from_record(message.content[RECORD])

    def compute() -> Contribution:
        model = _store(context).get(request.model).astype(np.float64)
        loss = float(np.mean((model - _index(context)) ** 2))
        return Contribution({"examples": 1, "loss": loss, "seconds": 2 * SECONDS})

    return _masked(message, context, request, compute, "evaluate")


@app.query("survivors")
def survivors(message: Message, context: Context) -> Message:
    request = SumRequest.from_record(message.content[RECORD])
    return _reply(message, _device(context).survivors(request).to_record())


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    request = SumRequest.from_record(message.content[RECORD])
    return _reply(message, _device(context).unmask(request).to_record())


def _masked(message, context, request, compute, purpose) -> Message:
    body, vector = _device(context).upload(request, purpose, compute)
    data = vector.view(np.uint8)
    if RunConfig.from_json(request.config).update_transport == "message":
        reply = MaskedReply(body, "", data.tobytes())
    else:
        reply = MaskedReply(body, BlobStore(_store(context).root).put(data), b"")
    return _reply(message, reply.to_record())


def _device(context: Context) -> SecureDevice:
    fleet = Path(str(context.node_config["folder"]))
    folder = fleet / _name(context)
    policy = DevicePolicy(minimum_cohort=2)
    identity, register = folder / IDENTITY_FILE, fleet / REGISTER_FILE
    return SecureDevice(_name(context), identity, register, policy, folder, durable=False)


def _index(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _name(context: Context) -> str:
    return f"device-{_index(context):04d}"


def _store(context: Context) -> WeightStore:
    return WeightStore(Path(str(context.run_config["store"])))


def _reply(message: Message, record: dict) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord(record)}), reply_to=message)
