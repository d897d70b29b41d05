"""The device's Flower ClientApp: describe, train, evaluate.

Where the data and the models are is the node's configuration, or else the run's:

device: the device's description (see `DeviceDataset`); without it
devices: a folder whose device-*.json are dealt to the nodes by `partition-id`; without it
corpus: what `open_corpus` takes; every node draws its own speaker.
store: the folder of models by content hash; without it the run's own below the user's cache.

Heavy libraries are imported where a message needs them: a deployment starts a process a message.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedspk.errors import FedspkError
from fedspk.rounds import (
    RECORD,
    DescribeReply,
    EvaluateReply,
    EvaluateRequest,
    RecordValue,
    RunConfig,
    TrainReply,
    TrainRequest,
)
from fedspk.run_folder import run_folder

if TYPE_CHECKING:
    from clients.dataset import DeviceDataset
    from fedspk.weights import WeightStore

app = ClientApp()

_DESCRIPTIONS = "device-[0-9]*[0-9].json"


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Say who the device is and how much it has to train on."""
    dataset = _dataset(context)
    return _reply(message, DescribeReply(dataset.device, len(dataset.owner_train)).to_record())


@app.train()
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
    return _reply(message, EvaluateReply(dataset.device, loss, examples, seconds).to_record())


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
