"""The experiment's configuration: presets in TOML, a file of the user's, then the flags.

What all arms share is one `fedspk.rounds.RunConfig` under `[run]`; `[individual]`, `[federated]`
and `[personalised]` override single fields of it. `config.json` in a run's folder is the result.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clients.local import PersonalPlan
from fedspk.encoders import has_fixed_length, list_encoders
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.rounds import ImpostorKind, RunConfig
from gan.generator_file import packaged_generator
from gan.invented import file_hash

Arm: TypeAlias = Literal["initial", "individual", "averaged", "federated", "personalised", "pooled"]
Preset: TypeAlias = Literal["default", "quick", "paper"]
ARMS: tuple[Arm, ...] = get_args(Arm)
PRESETS: tuple[Preset, ...] = get_args(Preset)

# The files that make up a preset, each on top of the one before.
_LAYERS: dict[Preset, tuple[Preset, ...]] = {
    "default": ("default",),
    "quick": ("default", "quick"),
    "paper": ("paper",),
}

# What the experiment sets itself, or what all arms must have in common.
_NOT_TO_OVERRIDE = {
    *("name", "seed", "impostors", "generator", "public", "devices"),
    *("frames", "bins", "front_end", "encoder", "encoder_params", "minimum_reply_fraction"),
}
# How a device trains for itself.
_LOCAL_TRAINING = (
    *("batch_size", "owner_fraction", "crop_frames", "local_optimiser", "learning_rate"),
    *("final_learning_rate", "momentum", "weight_decay", "clip_norm"),
)

# Arms whose training meets impostors: one of each kind that is asked for.
IMPOSTOR_ARMS: tuple[Arm, ...] = ("individual", "averaged", "federated", "personalised")


class CentralTraining(BaseModel):
    """Training in one place: on public speech before version 1, or on everybody's (`pooled`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(800, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    final_learning_rate: float = Field(1e-4, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    validate_every: int = Field(100, ge=1)
    patience: int = Field(5, ge=0)
    optimiser: Literal["sgd", "adamw"] = "adamw"
    clip_norm: float = Field(5.0, ge=0)
    frozen_statistics: bool = False


class ExperimentConfig(BaseModel):
    """Everything that decides the numbers of an experiment.

    arms, impostors: what is compared; the first kind of impostors bears the plain names.
    generator: file of the impostor generator for the impostors "gan".
    invented_speakers: how many voices it invents, each a class of its own.
    init: model file that every arm starts from; without it `start` decides: a model trained on
        the corpus's public speakers, or random weights as in the paper.
    folds: above 1, cross-validation over every owner's utterances; 0 chooses it, in place of one
        80/20 split, where an owner has few utterances.
    public_corpus: where the public speakers come from, when not from the corpus of the owners.
    public_speakers, public_utterances: at most so many become classes and training impostors, and
        so many utterances of each.
    copies: channel-augmented copies of each training utterance, beside the one as recorded.
    speeds: every public speaker is a further class at each speed other than 1.
    test_sessions: simulated sessions in which each test utterance is heard.
    run: what the devices' arms share; `federated` overrides single fields of it. A device that
        trains for itself (individual, personalised) trains as `run` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str = "synthetic"
    devices: int = Field(25, ge=2)
    arms: tuple[Arm, ...] = ARMS
    impostors: tuple[ImpostorKind, ...] = ("speech",)
    generator: Path = Field(default_factory=packaged_generator)
    invented_speakers: int = Field(90, ge=2)
    init: Path | None = None
    start: Literal["public", "random"] = "public"
    seed: int = Field(0, ge=0)
    folds: int = Field(0, ge=0)
    public_corpus: str = ""
    public_speakers: int = Field(50, ge=2)
    public_utterances: int = Field(20, ge=1)
    copies: int = Field(6, ge=0)
    speeds: tuple[float, ...] = (1.0,)
    test_sessions: int = Field(3, ge=1)
    front_end: FrontEndConfig = FrontEndConfig()
    run: RunConfig = RunConfig()
    federated: dict[str, Any] = Field(default_factory=dict)
    individual: PersonalPlan = PersonalPlan()
    personalised: PersonalPlan = PersonalPlan()
    pretrain: CentralTraining = CentralTraining()
    pooled: CentralTraining = CentralTraining()

    @field_validator("arms", "impostors")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name each value once, at least one")
        return value

    @field_validator("speeds")
    @classmethod
    def _playable(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 not in value or not all(0.5 <= speed <= 2 for speed in value):
            raise ValueError("give speeds from 0.5 to 2, 1.0 among them")
        return value

    @field_validator("federated")
    @classmethod
    def _overrides(cls, value: dict[str, Any]) -> dict[str, Any]:
        if wrong := sorted(set(value) & _NOT_TO_OVERRIDE):
            raise ValueError(f"{', '.join(wrong)} cannot differ between the arms")
        return value

    def arm(self, arm: Arm, impostors: ImpostorKind, public: int = 0) -> RunConfig:
        """Return the run configuration of one arm with one kind of impostors.

        The personalised arm continues the federated run, so it bears its name, and trains on the
        device as `run` says.

        Raises:
            FedspkError: an override names an unknown field or is out of range.
        """
        together = arm in ("federated", "personalised")
        changes = dict(self.federated) if together else {}
        if arm == "personalised":
            changes |= {name: getattr(self.run, name) for name in _LOCAL_TRAINING}
        if changes.get("codeword_seed") is not None:
            changes["devices"] = self.devices
        if has_fixed_length(self.run.encoder):
            changes["crop_frames"] = None
        hears = asdict(self.front_end)
        invents = impostors == "gan" and arm in IMPOSTOR_ARMS
        fixed = {
            "name": arm_name("federated" if together else arm, impostors, self.impostors[0]),
            "seed": self.seed,
            "impostors": impostors,
            "generator": file_hash(self.generator) if invents else "",
            "public": self.invented_speakers if invents else public,
            "frames": hears.pop("frames"),
            "bins": hears.pop("bins"),
            "front_end": hears,
            # One machine plays all devices: a device that fails is a fault, not a drop-out.
            "minimum_reply_fraction": 1.0,
        }
        return self.run.changed(**changes, **fixed)


def arm_name(arm: Arm, impostors: ImpostorKind, plain: ImpostorKind) -> str:
    """Return the arm's name in results: the first kind of impostors has no suffix."""
    return arm if impostors == plain or arm not in IMPOSTOR_ARMS else f"{arm}-{impostors}"


def load_config(preset: Preset, file: Path | None, flags: Mapping[str, Any]) -> ExperimentConfig:
    """Return the preset, overridden by the file's values and then by the flags.

    Args:
        preset: which of the packaged TOML files to start from.
        file: the user's TOML file with any of the same fields.
        flags: values by dotted field name, for example `{"federated.rounds": 5}`.

    Raises:
        FedspkError: the file cannot be read, or a field is unknown or out of range.
    """
    values: dict[str, Any] = {}
    for name in _LAYERS[preset]:
        _merge(values, tomllib.loads(_preset_text(name)))
    if file is not None:
        _merge(values, _read_toml(file))
    for dotted, value in flags.items():
        nested: Any = value
        for part in reversed(dotted.split(".")):
            nested = {part: nested}
        _merge(values, nested)
    try:
        config = ExperimentConfig.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise FedspkError(f"Configuration field {field}: {fault['msg']}.") from error
    if config.run.encoder not in list_encoders():
        raise FedspkError(
            f"encoder {config.run.encoder!r} is unknown; choose one of "
            f"{', '.join(list_encoders())}."
        )
    for arm in IMPOSTOR_ARMS:
        config.arm(arm, config.impostors[0])
    return config


def _preset_text(name: str) -> str:
    return (resources.files("simulations.federated") / "presets" / f"{name}.toml").read_text()


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedspkError(f"{file}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FedspkError(f"{file}: is not valid TOML ({error}).") from error


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    for name, value in over.items():
        is_table = isinstance(values.get(name), dict)
        if isinstance(value, Mapping) and is_table:
            _merge(values[name], value)
        elif not (value is True and is_table):  # what is switched on keeps its settings
            values[name] = value
