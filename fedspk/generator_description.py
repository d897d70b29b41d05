"""What an impostor generator's file says that it holds, told without building its network.

The network is `gan.network.Generator`. Server and devices must know a generator's file before they
trust a number in it, so the weights that a description asks for are counted here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    field_validator,
)

from fedspk.errors import FedspkError, first_fault
from fedspk.features import FrontEndConfig
from fedspk.release import Hash, Scalar

KERNEL = 5
"""Width of every convolution of a generator, in steps of its layer."""

_MOST_LAYERS = 12  # the last one's steps are 2048 times as short as the first one's


@dataclass(frozen=True)
class NetworkConfig:
    """The sizes of a generator.

    Args:
        speaker_dim, session_dim, content_dim: lengths of the three codes (content: of each step).
        style_dim: width of the network that turns codes into styles.
        channels: of the layers; every layer but the first doubles the time resolution.

    Raises:
        FedspkError: a size is no positive whole number, or there are too many layers.
    """

    speaker_dim: int = 64
    session_dim: int = 16
    content_dim: int = 16
    style_dim: int = 128
    channels: tuple[int, ...] = (256, 192, 128, 96)

    def __post_init__(self) -> None:
        sizes = (self.speaker_dim, self.session_dim, self.content_dim, self.style_dim)
        if not all(type(size) is int and size > 0 for size in (*sizes, *self.channels)):
            raise FedspkError("generator: sizes must be positive whole numbers")
        if not 1 <= len(self.channels) <= _MOST_LAYERS:
            raise FedspkError(f"generator: must have 1 to {_MOST_LAYERS} layers")

    def steps(self, frames: int) -> int:
        """Return the length of the content sequence of a patch of `frames` frames."""
        stretch: int = 1 << (len(self.channels) - 1)
        return -(-frames // stretch)

    def weights(self, bins: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the weights of a generator of `bins` bands."""
        shapes: dict[str, tuple[int, ...]] = {
            "voice.1.weight": (self.style_dim, self.speaker_dim),
            "voice.3.weight": (self.style_dim, self.style_dim),
            "output.weight": (bins, self.channels[-1], KERNEL),
        }
        style = self.style_dim + self.session_dim
        inputs = (self.content_dim, *self.channels[:-1])
        for number, (width, outputs) in enumerate(zip(inputs, self.channels, strict=True)):
            shapes[f"layers.{number}.convolution.weight"] = (outputs, width, KERNEL)
            shapes[f"layers.{number}.style.weight"] = (2 * outputs, style)
        biases = {f"{name.removesuffix('weight')}bias": shape[:1] for name, shape in shapes.items()}
        noise = {f"layers.{n}.noise": (width, 1) for n, width in enumerate(self.channels)}
        return shapes | biases | noise


class _Reached(BaseModel):
    """Which step of its training the weights are of."""

    model_config = ConfigDict(strict=True)

    step: Annotated[int, Field(ge=0)]


class _Plan(BaseModel):
    """How utterances were cut: the fields of `gan.patches.PatchPlan`."""

    model_config = ConfigDict(strict=True)

    patches: Annotated[int, Field(ge=1)]
    speeds: list[float]


class _Origin(BaseModel):
    """The fields of an origin that are computed with; the others are for people."""

    model_config = ConfigDict(strict=True)

    heard: list[str] = Field(default_factory=list)
    training: dict[str, Scalar] = Field(default_factory=dict)
    reached: _Reached | None = None
    plan: _Plan | None = None

    @field_validator("training")
    @classmethod
    def _has_a_seed(cls, value: dict[str, Scalar]) -> dict[str, Scalar]:
        seed = value.get("seed", 0)
        if type(seed) is not int or seed < 0:
            raise ValueError("the seed is no whole number from 0")
        return value


class GeneratorDescription(BaseModel):
    """What a generator is, and how it was made: stored beside its weights.

    Args:
        network: its sizes.
        front_end: of the patches.
        corpus: fingerprint of the speech that it was trained on.
        speakers: how many spoke it.
        origin: how it was made, as JSON values: training, versions; `heard` holds the marks
            (`fedspk.corpora.Utterance.mark`) of the utterances that it was trained on.
        weights: `weights_hash` of the weights; None in files of before there was one.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal[1] = 1
    network: InstanceOf[NetworkConfig]
    front_end: InstanceOf[FrontEndConfig]
    corpus: Annotated[str, Field(min_length=1)]
    speakers: Annotated[int, Field(ge=0)]
    origin: dict[str, Any]
    weights: Hash | None = None

    @field_validator("origin")
    @classmethod
    def _is_typed(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            _Origin.model_validate(value)
        except ValidationError as error:
            raise ValueError(first_fault(error)) from error
        return value

    def to_json(self) -> str:
        """Return the description as one canonical line of JSON."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values |= {"network": asdict(self.network), "front_end": asdict(self.front_end)}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> GeneratorDescription:
        """Return the description that `to_json` wrote.

        Raises:
            FedspkError: the text describes no generator that this version of fedspk knows.
        """
        try:
            values = json.loads(text)
            sizes = values["network"]
            network = NetworkConfig(**{**sizes, "channels": tuple(sizes["channels"])})
            front_end = FrontEndConfig(**values["front_end"])
            return cls.model_validate({**values, "network": network, "front_end": front_end})
        except ValidationError as error:
            raise FedspkError(first_fault(error)) from error
        except KeyError as error:
            raise FedspkError(f"{error.args[0]} is missing") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise FedspkError(str(error)) from error


def weights_hash(weights: Mapping[str, npt.NDArray[np.float16]]) -> str:
    """Return the SHA-256 of weights as little-endian float16 by rising name, in hex."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name], dtype="<f2").data)
    return digest.hexdigest()
