"""The device's Flower ClientApp: describe, train, evaluate, and the steps of a secure sum.

Where the data and the models are is the node's configuration, or else the run's:

device: the device's description (see `DeviceDataset`); without it
devices: a folder whose device-*.json are dealt to the nodes by `partition-id`; without it
corpus: what `open_corpus` takes; every node draws its own speaker.
store: the folder of models by content hash; without it the run's own below the user's cache.

What the device insists on is the node's configuration alone:

server: address of the main server; the device then trains only from the model that the server's
    channel "training" names, with server-root: the file of its root metadata, and server-ca:
    certificates to trust in place of the system's. Without it models come from the folder `store`.
    A run's impostor generator comes from there too, unless the device's description names one.
identity, register: files (see `fedspk identity`); without them `identity.json` in the device's
    private folder, and `register.json` beside its description.
minimum-cohort: fewest devices of a sum that the device takes part in, those that failed not
    counted; 5, or all the nodes of a simulation (`num-partitions`) of fewer. It bounds one sum: two
    sums over almost the same devices still differ by one device's update.
minimum-noise: least noise in every sum of updates, as a multiple of the sum's sensitivity, when
    only the fewest devices remain and the corrupt ones add none; 0, for any. Validation losses
    carry no noise whatever this says.
durable-state: false spares a simulation the wait for the disk with every answer of a secure sum.
plain-updates: true to send updates in clear to runs that ask for it; without it they are refused.

A failure is answered with its kind alone; what happened goes to the log `fedspk.device`.

Heavy libraries are imported where a message needs them: a deployment starts a process a message.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedspk.errors import FedspkError
from fedspk.rounds import (
    DEVICE_LOG,
    LONG_VALUES,
    RECORD,
    DescribeReply,
    EvaluateReply,
    EvaluateRequest,
    MaskedEvaluateRequest,
    MaskedReply,
    MaskedTrainRequest,
    RecordValue,
    RunConfig,
    SumRequest,
    SumShareRequest,
    TrainReply,
    TrainRequest,
    failure_reason,
)
from fedspk.run_folder import run_folder

if TYPE_CHECKING:
    from clients.dataset import DeviceDataset
    from clients.local import LocalUpdate
    from clients.model_source import ModelSource
    from clients.secure import SecureDevice
    from fedspk.secagg.masks import MaskedVector
    from fedspk.weights import FloatVector, WeightStore

Handler: TypeAlias = Callable[[Message, Context], Message]

app = ClientApp()

_log = logging.getLogger(DEVICE_LOG)
_DESCRIPTIONS = "device-[0-9]*[0-9].json"
MINIMUM_COHORT = 5
_ONE_PIECE = 1 << 16  # bytes
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
    """Train one round and return the delta and its weight, in clear."""
    _require_plain_updates(context)
    request = TrainRequest.from_record(_content(message))
    config = RunConfig.from_json(request.config)
    dataset = _training_data(context, config)
    update = _update(dataset, _model(context, config, request.model), config, request)
    by_file = config.update_transport == "file"
    reply = TrainReply(
        device=dataset.device,
        weight=update.weight,
        loss=float(update.result.training_loss or 0.0),
        steps=update.result.steps,
        seconds=update.result.seconds,
        update=_store(context).put(update.delta) if by_file else "",
        delta=b"" if by_file else update.delta.astype("<f4").tobytes(),
    )
    return _reply(message, reply.to_record())


@app.evaluate()
@_discreet
def evaluate(message: Message, context: Context) -> Message:
    """Return the validation loss of a model, in clear."""
    _require_plain_updates(context)
    request = EvaluateRequest.from_record(_content(message))
    config = RunConfig.from_json(request.config)
    dataset = _training_data(context, config)
    vector = _model(context, config, request.model)
    loss, examples, seconds = _validation(dataset, vector, config, request)
    reply = EvaluateReply(dataset.device, loss if examples else 0.0, examples, seconds)
    return _reply(message, reply.to_record())


@app.query("offer")
@_discreet
def offer(message: Message, context: Context) -> Message:
    """Offer keys for a secure sum."""
    request = SumRequest.from_record(_content(message))
    return _reply(message, _secure_device(context).offer(request).to_record())


@app.query("share")
@_discreet
def share(message: Message, context: Context) -> Message:
    """Share the secrets of a secure sum with its cohort."""
    request = SumShareRequest.from_record(_content(message))
    return _reply(message, _secure_device(context).share(request).to_record())


@app.train("masked")
@_discreet
def train_masked(message: Message, context: Context) -> Message:
    """Train one round and return the delta, its weight and the figures under masks."""
    from clients.secure import Contribution

    request = MaskedTrainRequest.from_record(_content(message))
    config = RunConfig.from_json(request.config)

    def compute() -> Contribution:
        vector = _model(context, config, request.model)
        update = _update(_training_data(context, config), vector, config, request)
        figures = {
            "weight": update.weight,
            "loss": float(update.result.training_loss or 0.0),
            "steps": update.result.steps,
            "seconds": update.result.seconds,
        }
        return Contribution(figures, update.delta)

    body, vector = _secure_device(context).upload(request, "train", compute)
    return _reply(message, _masked_reply(context, config, body, vector).to_record())


@app.evaluate("masked")
@_discreet
def evaluate_masked(message: Message, context: Context) -> Message:
    """Return the validation loss of a model under masks."""
    from clients.secure import Contribution

    request = MaskedEvaluateRequest.from_record(_content(message))
    config = RunConfig.from_json(request.config)

    def compute() -> Contribution:
        vector = _model(context, config, request.model)
        dataset = _training_data(context, config)
        loss, examples, seconds = _validation(dataset, vector, config, request)
        counts = examples > 0 and math.isfinite(loss)
        return Contribution(
            {"examples": counts, "loss": loss if counts else 0.0, "seconds": seconds}
        )

    body, vector = _secure_device(context).upload(request, "evaluate", compute)
    return _reply(message, _masked_reply(context, config, body, vector).to_record())


@app.query("survivors")
@_discreet
def survivors(message: Message, context: Context) -> Message:
    """Sign which devices of a secure sum have failed."""
    request = SumRequest.from_record(_content(message))
    return _reply(message, _secure_device(context).survivors(request).to_record())


@app.query("unmask")
@_discreet
def unmask(message: Message, context: Context) -> Message:
    """Give the shares that unmask a secure sum."""
    request = SumRequest.from_record(_content(message))
    return _reply(message, _secure_device(context).unmask(request).to_record())


def _update(
    dataset: DeviceDataset, vector: FloatVector, config: RunConfig, request: TrainRequest
) -> LocalUpdate:
    from clients.local import local_update

    return local_update(
        dataset,
        vector,
        config,
        round_number=request.round,
        best_round=request.best_round,
    )


def _validation(
    dataset: DeviceDataset, vector: FloatVector, config: RunConfig, request: EvaluateRequest
) -> tuple[float, int, float]:
    """Return loss, examples and seconds; round 0 is the first word of a run."""
    import time

    from clients.local import forget_private_parts, validation_loss

    started = time.perf_counter()
    if request.round == 0:
        forget_private_parts(dataset, config)
    loss, examples = validation_loss(dataset, vector, config, round_number=request.round)
    return loss, examples, time.perf_counter() - started


def _masked_reply(
    context: Context, config: RunConfig, body: bytes, vector: MaskedVector
) -> MaskedReply:
    import numpy as np

    from fedspk.store import BlobStore

    if config.update_transport == "message":
        return MaskedReply(body, "", vector.tobytes())
    blob = BlobStore(_store(context).root).put(vector.view(np.uint8))
    return MaskedReply(body, blob, b"")


def _require_plain_updates(context: Context) -> None:
    if context.node_config.get("plain-updates") is not True:
        raise FedspkError(
            "This device sends no update in clear; let the run have secure sums, or set "
            "plain-updates to true in the node's own configuration."
        )


def _content(message: Message) -> dict[str, object]:
    return dict(cast("ConfigRecord", message.content[RECORD]))


def _reply(message: Message, record: dict[str, RecordValue]) -> Message:
    """Return the reply; Flower sends a record of settings as one piece, arrays in many."""
    long = {
        name: Array("uint8", (len(value),), "bytes", value)
        for name, value in record.items()
        if isinstance(value, bytes) and len(value) > _ONE_PIECE
    }
    content = RecordDict(
        {RECORD: ConfigRecord({name: record[name] for name in record if name not in long})}
    )
    if long:
        content[LONG_VALUES] = ArrayRecord(long)
    return Message(content, reply_to=message)


def _dataset(context: Context) -> DeviceDataset:
    from clients.dataset import DeviceDataset

    return DeviceDataset.open(_description(context))


def _training_data(context: Context, config: RunConfig) -> DeviceDataset:
    """Return the device's data, with the generator that the run names if the device has none."""
    from dataclasses import replace

    dataset = _dataset(context)
    if config.impostors != "gan" or dataset.generator is not None:
        return dataset
    source = _source(context)
    return replace(dataset, generator=source.generator(config)) if source else dataset


def _description(context: Context) -> Path:
    """Return the device's description; a node that is given none draws its data."""
    device, folder = _setting(context, "device"), _setting(context, "devices")
    if device:
        return Path(device)
    partition = int(context.node_config.get("partition-id", 0))
    if not folder:
        return _drawn(context, partition)
    files = sorted(Path(folder).glob(_DESCRIPTIONS))
    if partition >= len(files):
        raise FedspkError(
            f"{folder}: has {len(files)} devices and the federation more nodes; use fewer nodes."
        )
    return files[partition]


def _drawn(context: Context, partition: int) -> Path:
    from clients.dataset import description_path

    corpus = _setting(context, "corpus")
    if not corpus:
        raise FedspkError(
            "The node's configuration names no data; set device (a file), devices (a folder) or "
            "corpus."
        )
    folder = run_folder(context.run_id) / "devices"
    path = description_path(folder, partition)
    if not path.exists():
        from clients.partition import partition_dataset

        partition_dataset(corpus, partition, _partitions(context), folder)
    return path


def _partitions(context: Context) -> int:
    return int(context.node_config.get("num-partitions", 1))


def _secure_device(context: Context) -> SecureDevice:
    from clients.enrolment import IDENTITY_FILE, REGISTER_FILE
    from clients.secure import SecureDevice
    from fedspk.secagg.client import DevicePolicy

    dataset, node = _dataset(context), context.node_config
    return SecureDevice(
        dataset.device,
        identity=Path(str(node.get("identity") or dataset.folder / IDENTITY_FILE)),
        register=Path(str(node.get("register") or dataset.folder.parent / REGISTER_FILE)),
        policy=DevicePolicy(
            minimum_cohort=_minimum_cohort(context), minimum_noise=_minimum_noise(context)
        ),
        folder=dataset.folder,
        durable=node.get("durable-state") is not False,
    )


def _minimum_cohort(context: Context) -> int:
    given = context.node_config.get("minimum-cohort")
    if given is None:
        is_simulated = "num-partitions" in context.node_config
        return max(2, min(MINIMUM_COHORT, _partitions(context))) if is_simulated else MINIMUM_COHORT
    if not isinstance(given, int) or given < 2:
        raise FedspkError(
            f"The node's minimum-cohort is {given!r}; give 2 or more: the sum over one device is "
            "its update."
        )
    return given


def _minimum_noise(context: Context) -> float:
    given = context.node_config.get("minimum-noise", 0.0)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
        raise FedspkError(
            f"The node's minimum-noise is {given!r}; give a multiple of the sensitivity, such as "
            "1.0, or 0 for sums of any noise."
        )
    return float(given)


def _model(context: Context, config: RunConfig, model: str) -> FloatVector:
    """Return the model of this hash: from the main server, verified, if the node has one."""
    source = _source(context)
    return source.get(model, config) if source else _store(context).get(model)


def _source(context: Context) -> ModelSource | None:
    """Return what the main server publishes; None if the node has no server."""
    node = context.node_config
    address = str(node.get("server") or "")
    if not address:
        return None
    from clients.model_source import ModelSource

    root, ca = str(node.get("server-root") or ""), str(node.get("server-ca") or "")
    if not root:
        raise FedspkError("The node has a server but no server-root; name the file.")
    folder = _dataset(context).folder / "versions"
    return ModelSource(address, folder, Path(root), Path(ca) if ca else None)


def _store(context: Context) -> WeightStore:
    return _open_store(_setting(context, "store") or str(run_folder(context.run_id) / "store"))


@cache
def _open_store(folder: str) -> WeightStore:
    """Return this process's store of a folder: it remembers which hashes it has checked."""
    from fedspk.weights import WeightStore

    return WeightStore(Path(folder))


def _setting(context: Context, name: str) -> str:
    return str(context.node_config.get(name) or context.run_config.get(name) or "")
