"""What a published model is: the manifest and the channels that server and devices share.

A repository of versions holds, as signed targets,

- `models/<n>/model.safetensors` and `models/<n>/manifest.json`: version n of the speaker model,
- `gan/<n>/model.safetensors` and `gan/<n>/manifest.json`: version n of the impostor generator,
- `channels/<name>.json`: which version the devices of a channel use.

Versions are whole numbers that only rise; to go back is to publish old weights as a new version.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fedspk import __version__
from fedspk.errors import FedspkError, first_fault

if TYPE_CHECKING:
    from fedspk.engine import ModelDescription
    from fedspk.generator_description import GeneratorDescription

Kind = Literal["model", "gan"]
ChannelName = Literal["training", "canary", "stable"]
Scalar = bool | int | float | str

CHANNELS: tuple[ChannelName, ...] = get_args(ChannelName)
CANARY_SHARE = 0.1
"""Of all devices, where the operator names no other share."""

MOST_JSON = 64 * 1024
"""No manifest and no channel is longer, in bytes."""

MOST_GENERATOR = 5 * 1024 * 1024
"""No file of an impostor generator is longer, in bytes."""

_FOLDERS: dict[Kind, str] = {"model": "models", "gan": "gan"}
_TARGET = re.compile(r"(models|gan)/([1-9][0-9]{0,8})/(model\.safetensors|manifest\.json)")
_CHANNEL = re.compile(rf"channels/({'|'.join(CHANNELS)})\.json")

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[int, Field(ge=1, lt=10**9)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0)]
ClientVersion = Annotated[str, Field(pattern=r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$")]
"""Of fedspk, as 0.1.0."""


class _Document(BaseModel):
    """A part of a signed file: nothing in it is unknown, infinite or changed afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _File(_Document):
    """A signed file."""

    def to_json(self) -> bytes:
        """Return the file's content, which `from_json` reads."""
        return (self.model_dump_json(indent=2) + "\n").encode()


Document = TypeVar("Document", bound=_Document)


class Architecture(_Document):
    """What a model is made of: the JSON form of `fedspk.engine.ModelDescription`."""

    encoder: str
    encoder_params: dict[str, Any] = Field(default_factory=dict)
    front_end: dict[str, Scalar]

    @classmethod
    def of(cls, description: ModelDescription) -> Self:
        """Return the JSON form of a model file's description."""
        return cls.model_validate_json(description.to_json())

    def description(self) -> ModelDescription:
        """Return the description.

        Raises:
            FedspkError: the front end is none that this version of fedspk knows.
        """
        from fedspk.engine import ModelDescription

        return ModelDescription.from_json(self.model_dump_json())


class Parent(_Document):
    """The version that training started from, or that this one replaces."""

    version: Version
    content_hash: Hash


class Training(_Document):
    """How a model was trained: `config` is a hash of the configuration, or its fields."""

    config: str | dict[str, Scalar]
    round: Count | None = None
    cohort_size: Count | None = None
    survivors: Count | None = None


class Privacy(_Document):
    """The budget spent on a model: (epsilon, delta)-differential privacy of each device."""

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)


class Evaluation(_Document):
    """How well a model did: EER and its 95 % interval in per cent, on trials by fingerprint.

    The interval is one over trials: too narrow where few speakers spoke them.
    """

    eer: Percent
    eer_interval: tuple[Percent, Percent]
    min_dcf: float = Field(ge=0)
    devices: Count
    corpus: str = Field(min_length=1)

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        low, high = self.eer_interval
        if not low <= self.eer <= high:
            raise ValueError("the EER lies outside its interval")
        return self


class Threshold(_Document):
    """Scores from `threshold` on accept; of the trials' non-targets at most a share of
    `false_accept_rate` (0 to 1) reached it.
    """

    false_accept_rate: float = Field(gt=0, lt=1)
    threshold: float


class Generator(_Document):
    """What an impostor generator makes, and of what: all of it stands in its file, too.

    `front_end` is that of the patches, `corpus` the fingerprint of the speech that it was trained
    on and `speakers` how many spoke it.
    """

    front_end: dict[str, Scalar]
    corpus: str = Field(min_length=1)
    speakers: Count

    @classmethod
    def of(cls, description: GeneratorDescription) -> Self:
        """Return what of a generator file's description is published."""
        return cls(
            front_end=asdict(description.front_end),
            corpus=description.corpus,
            speakers=description.speakers,
        )


class Manifest(_File):
    """All there is to know of one version of a model but its weights.

    Args:
        kind: "model", the speaker model, or "gan", the impostor generator.
        version: its number; every kind is counted by itself.
        architecture: what a speaker model is made of; None for a generator.
        generator: what a generator makes; None for a speaker model.
        content_hash: `fedspk.engine.model_hash` of a speaker model, to which profiles are bound;
            of a generator, the SHA-256 of its file.
        length: of the model file, in bytes.
        report: figures of `fedspk gan report` on a generator, by name.
        thresholds: calibrated decision thresholds, by rising false-accept rate.
        minimum_client: the oldest fedspk that can use it.
        created: when, in UTC.
        rolled_back_to: the version whose weights these are, when published to go back to it.
        intermediate: whether it is a round of a run, which may be withdrawn later.
    """

    format: Literal[1] = 1
    kind: Kind = "model"
    version: Version
    architecture: Architecture | None
    generator: Generator | None = None
    content_hash: Hash
    length: int = Field(ge=1)
    parent: Parent | None = None
    training: Training | None = None
    privacy: Privacy | None = None
    evaluation: Evaluation | None = None
    report: dict[str, Scalar] = Field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = ()
    minimum_client: ClientVersion = "0.1.0"
    created: AwareDatetime
    rolled_back_to: Version | None = None
    intermediate: bool = False

    @field_validator("created")
    @classmethod
    def _in_utc(cls, value: AwareDatetime) -> AwareDatetime:
        if value.utcoffset():
            raise ValueError("the time must be in UTC")
        return value

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        described = (self.architecture is not None, self.generator is not None)
        if described != (self.kind == "model", self.kind == "gan"):
            raise ValueError(f"kind {self.kind} needs its own description, and no other")
        if self.kind == "gan" and self.length > MOST_GENERATOR:
            raise ValueError(f"no impostor generator is longer than {MOST_GENERATOR} bytes")
        parent = self.parent.version if self.parent else None
        for earlier in (parent, self.rolled_back_to):
            if earlier is not None and earlier >= self.version:
                raise ValueError(f"version {self.version} cannot come from version {earlier}")
        rates = [each.false_accept_rate for each in self.thresholds]
        cuts = [each.threshold for each in self.thresholds]
        if rates != sorted(set(rates)) or cuts != sorted(cuts, reverse=True):
            raise ValueError("thresholds must fall while their false-accept rates rise")
        return self

    @classmethod
    def from_json(cls, text: bytes | str, name: str = "the manifest") -> Manifest:
        """Read what `to_json` wrote; `name` says in an error where it was.

        Raises:
            FedspkError: a field is unknown, missing or out of range.
        """
        return _parsed(cls, text, name)


class Channel(_File):
    """Which version a group of devices uses.

    Of the canary channel, `share` (0 to 1) of all devices are served, chosen by `in_canary` with
    `salt`; the others follow "stable".
    """

    format: Literal[1] = 1
    name: ChannelName
    version: Version
    share: float = Field(default=1.0, ge=0, le=1)
    salt: str = Field(default="", pattern=r"^[0-9a-f]{0,64}$")

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.name != "canary" and (self.share != 1 or self.salt):
            raise ValueError(f"channel {self.name} is for all devices")
        return self

    @classmethod
    def from_json(cls, text: bytes | str, name: str = "the channel") -> Channel:
        """Read what `to_json` wrote; `name` says in an error where it was.

        Raises:
            FedspkError: a field is unknown, missing or out of range.
        """
        return _parsed(cls, text, name)

    @classmethod
    def naming(
        cls, name: ChannelName, version: int, present: Channel | None, share: float | None = None
    ) -> Channel:
        """Return a channel that names another version for the same devices.

        Args:
            name: of the channel.
            version: that it is to name.
            present: the channel as it is; None when it was never set.
            share: of the devices, of the canary channel alone; default: as before, at first
                `CANARY_SHARE`.

        Raises:
            FedspkError: the share is out of range, or the channel is for all devices.
        """
        if name != "canary":
            if share is not None:
                raise FedspkError(f"channel {name} is for all devices; --share is for canary.")
            return cls(name=name, version=version)
        if share is None:
            share = present.share if present else CANARY_SHARE
        if not 0 <= share <= 1:
            raise FedspkError(f"--share is {share:g}; give a share of the devices, from 0 to 1.")
        salt = present.salt if present else secrets.token_hex(16)
        return cls(name=name, version=version, share=share, salt=salt)


def in_canary(device: str, share: float, salt: str) -> bool:
    """Say whether a device belongs to the canaries, a `share` (0 to 1) of all devices.

    The answer depends on the arguments alone; a greater share keeps the devices of a smaller one,
    another salt chooses others.

    >>> in_canary("kitchen", 1.0, "00"), in_canary("kitchen", 0.0, "00")
    (True, False)
    """
    digest = hashlib.sha256(f"fedspk canary\n{salt}\n{device}".encode()).digest()
    return int.from_bytes(digest[:6]) < share * 2**48


def followed(device: str, stable: Channel | None, canary: Channel | None) -> Channel | None:
    """Return the channel that a device follows: canary if it belongs there, else stable.

    A canary that stable has overtaken has no say any more.
    """
    if canary and in_canary(device, canary.share, canary.salt):
        return canary if stable is None or canary.version >= stable.version else stable
    return stable


def replaced(
    name: ChannelName, channels: Callable[[ChannelName], Channel | None]
) -> Channel | None:
    """Return the channel whose version a new version of channel `name` takes the place of.

    A canary that stable has overtaken is none: its devices follow stable.

    Args:
        name: of the channel.
        channels: returns a channel as it is; None when it was never set.
    """
    present, stable = channels(name), channels("stable")
    if name == "canary" and present and stable and stable.version > present.version:
        return stable
    return present or stable


def model_path(kind: Kind, version: int) -> str:
    """Return the target that holds a version's weights."""
    return f"{_FOLDERS[kind]}/{version}/model.safetensors"


def manifest_path(kind: Kind, version: int) -> str:
    """Return the target that holds a version's manifest."""
    return f"{_FOLDERS[kind]}/{version}/manifest.json"


def channel_path(name: ChannelName) -> str:
    """Return the target that holds a channel."""
    return f"channels/{name}.json"


def version_at(path: str) -> tuple[Kind, int] | None:
    """Return which version a target belongs to; None if it belongs to none."""
    match = _TARGET.fullmatch(path)
    return ("model" if match[1] == "models" else "gan", int(match[2])) if match else None


def channel_at(path: str) -> ChannelName | None:
    """Return which channel a target holds; None if it holds none."""
    match = _CHANNEL.fullmatch(path)
    return next((name for name in CHANNELS if match and name == match[1]), None)


def check_client(manifest: Manifest, name: str) -> None:
    """Accept a version that this fedspk is new enough for; `name` says in an error which it is.

    Raises:
        FedspkError: it needs a newer one.
    """
    if _numbers(manifest.minimum_client) > _numbers(__version__):
        raise FedspkError(
            f"{name}: needs fedspk {manifest.minimum_client} or newer, this is {__version__}; "
            "update fedspk first."
        )


def check_model_file(path: Path, manifest: Manifest) -> None:
    """Accept a model file that is what its manifest says, without building the model.

    Length, front end, architecture, names, shapes and types are compared before any weight is
    read; the weights are then hashed tensor by tensor.

    Raises:
        FedspkError: the file is missing or broken, or disagrees with the manifest.
    """
    path = Path(path)
    try:
        length = path.stat().st_size
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    if length != manifest.length:
        raise FedspkError(
            f"{path}: is {length} bytes long, its manifest says {manifest.length}; "
            "it is damaged or another file."
        )
    from fedspk.model_file import ModelFile

    with ModelFile.open(path) as file:
        if manifest.architecture is not None:
            _check_architecture(path, file.description(), manifest.architecture.description())
            file.check_encoder()
            content_hash = file.model_hash()
        else:
            _check_generator(path, Generator.of(file.generator()), manifest)
            file.generator_weights()
            content_hash = file.file_hash()
        if content_hash != manifest.content_hash:
            raise FedspkError(
                f"{path}: its weights do not have the content hash of its manifest; "
                "it is damaged or another version."
            )


def _check_architecture(path: Path, found: ModelDescription, stated: ModelDescription) -> None:
    if found.front_end != stated.front_end:
        raise FedspkError(
            f"{path}: was made for the front end {found.front_end}, its manifest says "
            f"{stated.front_end}."
        )
    if found != stated:
        raise FedspkError(
            f"{path}: holds the encoder {found.encoder} {dict(found.encoder_params)}, its manifest "
            f"says {stated.encoder} {dict(stated.encoder_params)}."
        )


def _check_generator(path: Path, found: Generator, manifest: Manifest) -> None:
    assert manifest.generator is not None
    stated = manifest.generator.model_dump()
    for field, value in found.model_dump().items():
        if value != stated[field]:
            raise FedspkError(
                f"{path}: its {field} is {value}, its manifest says {stated[field]}; "
                "it is another generator."
            )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, as 0.1.0, for comparison."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def draft_manifest(
    draft: Mapping[str, Any], model: Path, version: int, **defaults: Any
) -> Manifest:
    """Return a whole manifest of a model file from a draft that may lack what follows from it.

    Args:
        draft: fields of a manifest; `kind` is "model" when left out. The version, and what the
            file itself says, may be left out but not contradicted.
        model: the file that is to be published.
        version: the number that it will have.
        defaults: other fields, used where the draft has none.

    Raises:
        FedspkError: the file is broken, or the draft disagrees with it or is wrong in itself.
    """
    from fedspk.model_file import ModelFile

    if draft.get("rolled_back_to") is not None:
        raise FedspkError(
            "the manifest's rolled_back_to is set by `fedspk server rollback` alone; leave it out."
        )
    is_model = draft.get("kind", "model") == "model"
    if not is_model and draft.get("report") and "content_hash" not in draft:
        raise FedspkError(
            "the manifest reports on a generator but has no content_hash, so it may be of any "
            "file; use the one that `fedspk gan report` writes."
        )
    with ModelFile.open(model) as file:
        if is_model:
            file.check_encoder()
        else:
            file.generator_weights()
        facts = {
            "version": version,
            "architecture": Architecture.of(file.description()).model_dump() if is_model else None,
            "generator": None if is_model else Generator.of(file.generator()).model_dump(),
            "content_hash": file.model_hash() if is_model else file.file_hash(),
            "length": Path(model).stat().st_size,
        }
    manifest = _validated({**defaults, **draft, **facts})
    stated = _validated({**defaults, **facts, **draft})
    for field, fact in facts.items():
        if getattr(stated, field) != getattr(manifest, field):
            remedy = (
                "it is of another file, use this one's own"
                if field == "content_hash"
                else "correct the field or leave it out"
            )
            raise FedspkError(
                f"the manifest's {field} is {draft[field]!r}, but {model.name} would be published "
                f"with {fact!r}; {remedy}."
            )
    return manifest


def _validated(fields: Mapping[str, Any]) -> Manifest:
    try:
        return Manifest.model_validate_json(json.dumps(fields, default=str))
    except (ValidationError, TypeError) as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else error
        raise FedspkError(f"the manifest is wrong: {reason}.") from error


def _parsed(cls: type[Document], text: bytes | str, name: str) -> Document:
    if len(text) > MOST_JSON:
        raise FedspkError(f"{name}: is longer than {MOST_JSON} bytes.")
    try:
        return cls.model_validate_json(text)
    except ValidationError as error:
        raise FedspkError(f"{name} is wrong: {first_fault(error)}.") from error
