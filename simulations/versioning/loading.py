"""Where a configuration comes from: a TOML or YAML file, then the flags, then a sweep's value."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fedspk.errors import FedspkError
from simulations.versioning.config import VersioningConfig
from simulations.versioning.speakerversim import is_speakerversim, translate
from simulations.versioning.strategies import get_strategy

_NO_SWEEP = ("strategies", "runs", "seed")


@dataclass(frozen=True)
class Sweep:
    """One field, by its dotted name, and the values it takes, as they were written."""

    key: str
    values: tuple[str, ...]


def load_config(file: Path | None, flags: Mapping[str, Any]) -> VersioningConfig:
    """Return the defaults, overridden by the file's values and then by the flags.

    Args:
        file: TOML, or YAML with our fields or SpeakerVerSim's (`.yml`, `.yaml`).
        flags: values by dotted field name, for example `{"rollout.mean_s": 600}`.

    Raises:
        FedspkError: the file cannot be read, or a field is unknown or out of range.
    """
    return _validated(_merged(_read(file) if file is not None else {}, flags))


def load_sweep(file: Path | None, flags: Mapping[str, Any], sweep: Sweep) -> list[VersioningConfig]:
    """Return one configuration for each value of the sweep.

    Raises:
        FedspkError: as `load_config` does.
    """
    return [load_config(file, {**flags, sweep.key: _typed(text)}) for text in sweep.values]


def parse_sweep(text: str) -> Sweep:
    """Return what `--sweep key=v1,v2,...` asks for.

    >>> parse_sweep("sync-interval=60,600")
    Sweep(key='sync_interval', values=('60', '600'))

    Raises:
        FedspkError: it is not of this form, or the field cannot be swept.
    """
    key, equals, listed = text.partition("=")
    values = tuple(part.strip() for part in listed.split(",") if part.strip())
    key = key.strip().replace("-", "_")
    if not (key and equals and values):
        raise FedspkError(f"--sweep {text}: give a field and its values, as workers=10,100,500.")
    if len(set(values)) != len(values):
        raise FedspkError(f"--sweep {text}: gives a value twice; name each value once.")
    if key in _NO_SWEEP:
        raise FedspkError(f"--sweep {text}: {key} cannot be swept; use --{key}.")
    return Sweep(key, values)


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        is_yaml = file.suffix.lower() in (".yml", ".yaml")
        values = yaml.safe_load(text) if is_yaml else tomllib.loads(text)
    except OSError as error:
        raise FedspkError(f"{file}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise FedspkError(f"{file}: is not valid TOML or YAML ({detail}).") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise FedspkError(f"{file}: holds no fields; write one a line, as `workers: 10`.")
    return translate(values, file) if is_speakerversim(values) else values


def _merged(values: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Put each flag into `values` where its dotted name says, and return them."""
    for dotted, value in flags.items():
        *tables, field = dotted.split(".")
        inner = values
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise FedspkError(f"Configuration field {table}: is no table of fields.")
        inner[field] = value
    return values


def _validated(values: Mapping[str, Any]) -> VersioningConfig:
    try:
        config = VersioningConfig.model_validate(values)
    except ValidationError as error:
        raise FedspkError(_explained(error)) from error
    for name in config.strategies:
        get_strategy(name)
    return config


def _explained(error: ValidationError) -> str:
    fault = error.errors()[0]
    parts = [str(part) for part in fault["loc"]]
    what = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return (
            f"Configuration field {'.'.join(parts)} is unknown; choose among "
            f"{', '.join(_fields(parts[:-1]))}."
        )
    if not parts:
        return f"Configuration: {what}."
    given = fault["input"]
    shown = f" (given: {given!r})" if isinstance(given, int | float | str) else ""
    return f"Configuration field {'.'.join(parts)}: {what}{shown}."


def _fields(tables: Sequence[str]) -> list[str]:
    model: Any = VersioningConfig
    for table in tables:
        model = model.model_fields[table].annotation
    assert issubclass(model, BaseModel)
    return list(model.model_fields)


def _typed(text: str) -> Any:
    """Return a number, true or false as such, anything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
