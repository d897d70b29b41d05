"""The device's Flower ClientApp: describe, train, evaluate.

Where the data and the models are is the node's configuration, or else the run's:

device: the device's description (see `DeviceDataset`); without it
devices: a folder whose device-*.json are dealt to the nodes by `partition-id`; without it
corpus: what `open_corpus` takes; every node draws its own speaker.
store: the folder of models by content hash; without it the run's own below the user's cache.

A failure is answered with its kind alone; what happened goes to the log `fedspk.device`.

Heavy libraries are imported where a message needs them: a deployment starts a process a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedspk.errors import FedspkError
from fedspk.rounds import (
    DEVICE_LOG,
    RECORD,
    DescribeReply,
    EvaluateReply,
    EvaluateRequest,
    RecordValue,
    RunConfig,
    TrainReply,
    TrainRequest,
    failure_reason,
)
from fedspk.run_folder import run_folder

if TYPE_CHECKING:
    from clients.dataset import DeviceDataset
    from fedspk.weights import WeightStore

Handler: TypeAlias = Callable[[Message, Context], Message]

app = ClientApp()

_log = logging.getLogger(DEVICE_LOG)
_DESCRIPTIONS = "device-[0-9]*[0-9].json"
_RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION, which is not public


def _discreet(handler: Handler) -> Handler:
    """Keep the text of exceptions at home."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            text = str(error) if isinstance(error, FedspkError) else repr(error)
            _log.error("%s", text, exc_info=not isinstance(error, FedspkError))
            return Message(Error(_RAISED, failure_reason(error)), reply_to=message)

    return answer


@app.query("describe")
@_discreet
def describe(message: Message, context: Context) -> Message:
    """Say who the device is."""
    return _reply(message, DescribeReply(_dataset(context).device).to_record())


@app.train()
@_discreet
def train(message: Message, context: Context) -> Message:
    """Train one round and return the delta and its weight."""
    from clients.local import local_update

    request = TrainRequest.from_record(_content(message))
    config = RunConfig.from_json(request.config)
    dataset, store = _dataset(context), _store(context)
    update = local_update(
        dataset,
        store.get(request.model),
        config,
        round_number=request.round,
        best_round=request.best_round,
    )
    by_file = config.update_transport == "file"
    reply = TrainReply(
        device=dataset.device,
        weight=update.weight,
        loss=float(update.result.training_loss or 0.0),
        steps=update.result.steps,
        seconds=update.result.seconds,
        update=store.put(update.delta) if by_file else "",
        delta=b"" if by_file else update.delta.astype("<f4").tobytes(),
    )
    return _reply(message, reply.to_record())


@app.evaluate()
@_discreet
def evaluate(message: Message, context: Context) -> Message:
    """Return the validation loss of a model; round 0 is the first word of a run."""
    import time

    from clients.local import forget_private_parts, validation_loss

    started = time.perf_counter()
    request = EvaluateRequest.from_record(_content(message))
    config = RunConfig.from_json(request.config)
    dataset = _dataset(context)
    if request.round == 0:
        forget_private_parts(dataset, config)
    vector = _store(context).get(request.model)
    loss, examples = validation_loss(dataset, vector, config, round_number=request.round)
    seconds = time.perf_counter() - started
    reply = EvaluateReply(dataset.device, loss if examples else 0.0, examples, seconds)
    return _reply(message, reply.to_record())


def _content(message: Message) -> dict[str, object]:
    return dict(cast("ConfigRecord", message.content[RECORD]))


def _reply(message: Message, record: dict[str, RecordValue]) -> Message:
    return Message(RecordDict({RECORD: ConfigRecord(dict(record))}), reply_to=message)


def _dataset(context: Context) -> DeviceDataset:
    from clients.dataset import DeviceDataset

    device, folder = _setting(context, "device"), _setting(context, "devices")
    if device:
        return DeviceDataset.open(Path(device))
    partition = int(context.node_config.get("partition-id", 0))
    if not folder:
        return _drawn_dataset(context, partition)
    files = sorted(Path(folder).glob(_DESCRIPTIONS))
    if partition >= len(files):
        raise FedspkError(
            f"{folder}: has {len(files)} devices and the federation more nodes; use fewer nodes."
        )
    return DeviceDataset.open(files[partition])


def _drawn_dataset(context: Context, partition: int) -> DeviceDataset:
    corpus = _setting(context, "corpus")
    if not corpus:
        raise FedspkError(
            "The node's configuration names no data; set device (a file), devices (a folder) or "
            "corpus."
        )
    from clients.partition import partition_dataset

    partitions = int(context.node_config.get("num-partitions", 1))
    return partition_dataset(corpus, partition, partitions, run_folder(context.run_id) / "devices")


def _store(context: Context) -> WeightStore:
    return _open_store(_setting(context, "store") or str(run_folder(context.run_id) / "store"))


@cache
def _open_store(folder: str) -> WeightStore:
    """Return this process's store of a folder: it remembers which hashes it has checked."""
    from fedspk.weights import WeightStore

    return WeightStore(Path(folder))


def _setting(context: Context, name: str) -> str:
    return str(context.node_config.get(name) or context.run_config.get(name) or "")
