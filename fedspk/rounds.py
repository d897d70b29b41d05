"""What aggregator and device say to each other: the run's configuration and the messages.

Every message is a flat record of strings, numbers and bytes, so that any transport can carry it.
The model travels by content hash only; an update, or a masked vector, travels by hash (simulation:
a shared folder) or as its little-endian bytes (deployment). Plain runs know `train` and `evaluate`;
in a secure run these are `train.masked` and `evaluate.masked`, around them go the steps of the
protocol, and no reply says anything about one device but its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedspk.errors import FedspkError, first_fault
from fedspk.secagg.config import SecureConfig

Scalar = bool | int | float | str
RecordValue = bool | int | float | str | bytes

RECORD = "fedspk"
"""The name of the one record in every message."""

LONG_VALUES = "fedspk.long"
"""The name of the record of a reply's long values, where Flower carries them in pieces."""

DEVICE_LOG = "fedspk.device"
"""The log of what went wrong on a device."""

HeadKind = Literal["binary", "softmax", "am", "aam"]
HeadSharing = Literal["local", "shared"]
ImpostorKind = Literal["speech", "gan", "none"]
OptimiserKind = Literal["fedavg", "fedavgm", "fedadam"]
UpdateTransport = Literal["file", "message"]
DecayOver = Literal["round", "run"]
Sampling = Literal["batches", "random"]
Purpose = Literal["train", "evaluate"]


class RunConfig(BaseModel):
    """One federated run, complete: the same JSON text and the same data give the same numbers.

    The fields that explain themselves are those of `HeadConfig` and `TrainingConfig`; the others:

    name: separates the runs of one experiment in each device's folder.
    front_end: the fields of `FrontEndConfig` beyond `frames` and `bins`; default: as there.
    public: public (or invented) speakers that all devices know as classes 0 .. public - 1.
    generator: SHA-256 of the impostor generator's file, for the impostors "gan".
    devices: class rows after them; with `codeword_seed` as many as there are devices, else 1.
    head: "local" keeps the binary head or the owner's class row on the device.
    share_statistics: federate batch normalisation's running statistics too.
    owner_fraction: the owner's share of a batch.
    crop_frames: train on random crops of so many frames; None takes whole clips.
    local_epochs: passes over the owner's utterances a round, used when `local_steps` is 0.
    decay: the learning rate falls to the final one within every "round", or over the "run".
    final_server_learning_rate: when given, the server's rate falls to it over the run.
    secure: how updates are summed so that no single one is seen; None (or false): they are sent in
        clear, to devices whose own configuration allows it.
    clients_per_round: devices of a round; 0 takes `client_fraction` of those there are.
    sampling: "batches" divides the devices once, into batches that take turns; "random" draws anew
        every round (McMahan et al. 2017), whose sums, subtracted, leak single devices in the end
        (So et al., arXiv 2106.03328).
    minimum_reply_fraction: fewer usable replies than this share of those asked fail a round.
    server_momentum, server_beta2, server_epsilon: of FedAvgM (the first) and FedAdam.
    evaluate_every: rounds between validations (the last round has one); 0 never validates.
    patience: validations in a row without improvement that end the run; 0 never does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="federated", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    seed: int = Field(default=0, ge=0)

    encoder: str = "vggm-small"
    encoder_params: dict[str, Scalar] = Field(default_factory=dict)
    frames: int = Field(default=350, ge=1)
    bins: int = Field(default=80, ge=1)
    front_end: dict[str, Scalar] = Field(default_factory=dict)

    head_kind: HeadKind = "binary"
    public: int = Field(default=0, ge=0)
    devices: int = Field(default=1, ge=1)
    codeword_seed: int | None = None
    scale: float = Field(default=40.0, gt=0)
    margin: float = Field(default=0.6, ge=0)
    head: HeadSharing = "local"
    share_statistics: bool = False
    impostors: ImpostorKind = "speech"
    generator: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    batch_size: int = Field(default=64, ge=1)
    owner_fraction: float = Field(default=0.25, gt=0, le=1)
    crop_frames: int | None = Field(default=None, ge=1)
    local_steps: int = Field(default=0, ge=0)
    local_epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-2, gt=0)
    final_learning_rate: float = Field(default=1e-8, gt=0)
    decay: DecayOver = "round"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    proximal_mu: float = Field(default=0.0, ge=0)
    local_optimiser: Literal["sgd", "adamw"] = "sgd"
    clip_norm: float = Field(default=0.0, ge=0)
    frozen_statistics: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"

    secure: SecureConfig | None = SecureConfig()
    rounds: int = Field(default=1, ge=0)
    clients_per_round: int = Field(default=0, ge=0)
    client_fraction: float = Field(default=1.0, gt=0, le=1)
    sampling: Sampling = "batches"
    minimum_reply_fraction: float = Field(default=0.5, gt=0, le=1)
    round_timeout_seconds: float = Field(default=3600.0, gt=0)
    optimiser: OptimiserKind = "fedavg"
    server_learning_rate: float = Field(default=1.0, gt=0)
    final_server_learning_rate: float | None = Field(default=None, gt=0)
    server_momentum: float = Field(default=0.9, ge=0, lt=1)
    server_beta2: float = Field(default=0.99, ge=0, lt=1)
    server_epsilon: float = Field(default=1e-3, gt=0)
    evaluate_every: int = Field(default=1, ge=0)
    patience: int = Field(default=0, ge=0)
    update_transport: UpdateTransport = "file"

    @field_validator("secure", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """Take a boolean too: TOML has no null."""
        return (SecureConfig() if value else None) if isinstance(value, bool) else value

    def to_json(self) -> str:
        """Return the text that travels and that `from_json` reads."""
        return self.model_dump_json()

    @classmethod
    @lru_cache(maxsize=8)  # every message of a run carries the same text
    def from_json(cls, text: str) -> RunConfig:
        """Read what `to_json` wrote.

        Raises:
            FedspkError: a field is unknown, missing or out of range.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise FedspkError(f"The run configuration is wrong: {first_fault(error)}.") from error

    def changed(self, **changes: Any) -> RunConfig:
        """Return a copy with some fields replaced, validated.

        Raises:
            FedspkError: a field is unknown or out of range.
        """
        try:
            return RunConfig.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise FedspkError(f"The run configuration is wrong: {first_fault(error)}.") from error

    def fingerprint(self) -> str:
        """Return a hash of everything that decides a round's numbers: runs of it can continue."""
        over_run = self.decay == "run" or self.final_server_learning_rate is not None
        free: dict[str, Any] = {"round_timeout_seconds": True, "rounds": not over_run}
        free["secure"] = {"stage_timeout_seconds", "attempts"}
        text = self.model_dump_json(exclude=free)
        return hashlib.sha256(text.encode()).hexdigest()


def failure_reason(error: Exception) -> str:
    """Return what a device says of a failure: its kind alone.

    The text of an exception may name files and people; it stays in the device's log.
    """
    return f"the device failed ({type(error).__name__}); its own log says why"


@dataclass(frozen=True)
class Record:
    """A message that is a flat record; its fields are its class's."""

    def to_record(self) -> dict[str, RecordValue]:
        """Return the fields by name."""
        return dict(vars(self))

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Self:
        """Read a record.

        Raises:
            FedspkError: a field is missing, has the wrong type or is not a sensible number.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = record.get(field.name)
            wanted = _TYPES[str(field.type)]
            if wanted is float and type(value) is int:
                value = float(value)
            if type(value) is not wanted:
                raise FedspkError(
                    f"{cls.__name__}: field {field.name!r} is missing or is not "
                    f"{wanted.__name__}; aggregator and device must run the same fedspk."
                )
            if isinstance(value, int | float) and not abs(value) < _LARGEST:
                raise FedspkError(f"{cls.__name__}: field {field.name!r} is {value:g}.")
            values[field.name] = value
        return cls(**values)


_LARGEST = 1e15
"""No count, loss or duration reaches this; a number beyond it, or NaN, would spoil every sum."""

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bytes": bytes}


@dataclass(frozen=True)
class DescribeRequest(Record):
    """Say who you are."""

    round: int


@dataclass(frozen=True)
class DescribeReply(Record):
    """Who a node is: the device's name, stable over runs."""

    device: str


@dataclass(frozen=True)
class TrainRequest(Record):
    """Train from the model named by its content hash; `config` is a `RunConfig` as JSON.

    `best_round` is the round that early stopping would restore now: private parts of the model
    that are older may be forgotten.
    """

    model: str
    round: int
    best_round: int
    config: str


@dataclass(frozen=True)
class TrainReply(Record):
    """One device's update: its content hash, or its bytes, and the weight n of Algorithm 1."""

    device: str
    weight: float
    loss: float
    steps: int
    seconds: float
    update: str
    delta: bytes


@dataclass(frozen=True)
class EvaluateRequest(Record):
    """Report the validation loss of the model named by its content hash, after `round`."""

    model: str
    round: int
    config: str


@dataclass(frozen=True)
class EvaluateReply(Record):
    """The validation loss on one device, and over how many examples."""

    device: str
    loss: float
    examples: int
    seconds: float


@dataclass(frozen=True)
class SumRequest(Record):
    """A step of a secure sum; `body` is a message of `fedspk.secagg.messages`."""

    body: bytes


@dataclass(frozen=True)
class SumShareRequest(SumRequest):
    """Share keys for a sum over what will be computed from this model under this configuration."""

    model: str
    config: str


@dataclass(frozen=True)
class SumReply(Record):
    """The answer to a step: a message of `fedspk.secagg.messages`."""

    body: bytes


@dataclass(frozen=True)
class MaskedTrainRequest(TrainRequest):
    """Train as in a `TrainRequest` and send the update under the masks of the sum."""

    body: bytes


@dataclass(frozen=True)
class MaskedEvaluateRequest(EvaluateRequest):
    """Validate as in an `EvaluateRequest` and send the loss under the masks of the sum."""

    body: bytes


@dataclass(frozen=True)
class MaskedReply(Record):
    """A masked vector, by its blob's content hash or as bytes, and the message beside it."""

    body: bytes
    blob: str
    vector: bytes
