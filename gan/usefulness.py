"""Of what use a generator is: the error rates of devices that trained against its voices.

They come from a run of `fedspk simulate --impostors speech,gan` with this very generator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fedspk.errors import FedspkError, first_fault
from fedspk.files import read_json
from gan.invented import file_hash

INVENTED = "federated-gan"
"""The arm whose devices trained against invented voices."""

REAL, ALONE = "federated", "individual"
_NEEDED = (ALONE, REAL, INVENTED)
_FURTHER = ("individual-gan", "individual-none", "federated-none")


class _Arm(BaseModel):
    mean_eer: float
    mean_eer_interval: tuple[float, float]


class _Device(BaseModel):
    eer: dict[str, float]


class _Test(BaseModel):
    metric: str
    test: str
    a: str
    b: str
    p_value: float


class _Config(BaseModel):
    impostors: tuple[str, ...]


class _Run(BaseModel):
    """The fields of a run's `results.json` that are read here."""

    generator: str | None
    config: _Config
    summary: dict[str, _Arm]
    devices: tuple[_Device, ...]
    tests: tuple[_Test, ...]


def read_usefulness(folder: Path, generator: Path) -> dict[str, Any]:
    """Return the mean EERs (per cent) of a run's arms, their devices' and the tests between them.

    The arms are `individual` and `federated` with real impostors, `federated-gan`, and those with
    invented impostors or none that the run has besides.

    Args:
        folder: the run's.
        generator: file of the generator that the run must have been made with.

    Raises:
        FedspkError: the folder holds no run, or one that does not tell of this generator.
    """
    run = _read(folder / "results.json")
    if missing := [arm for arm in _NEEDED if arm not in run.summary]:
        raise FedspkError(
            f"{folder}: has no arm {missing[0]}; give a run of `fedspk simulate --impostors "
            "speech,gan`."
        )
    if run.config.impostors[:1] != ("speech",):
        raise FedspkError(
            f"{folder}: its arm {REAL} had no real impostors; give a run of `fedspk simulate "
            "--impostors speech,gan`, speech first."
        )
    if run.generator != (wanted := file_hash(generator)):
        raise FedspkError(
            f"{folder}: was run with another generator ({str(run.generator)[:12]}...) than "
            f"{generator} ({wanted[:12]}...); run `fedspk simulate` with `--gan {generator}`."
        )
    arms = [*_NEEDED, *(arm for arm in _FURTHER if arm in run.summary)]
    if any(arm not in device.eer for device in run.devices for arm in arms):
        raise FedspkError(f"{folder}/results.json: lacks a device's EER; run it again.")
    return {
        "arms": {arm: run.summary[arm].model_dump(mode="json") for arm in arms},
        "tests": [
            row.model_dump()
            for row in run.tests
            if row.metric == "eer" and INVENTED in (row.a, row.b) and {row.a, row.b} <= set(arms)
        ],
        "eer": {arm: [device.eer[arm] for device in run.devices] for arm in arms},
    }


def _read(path: Path) -> _Run:
    found = read_json(path)
    if not isinstance(found, dict) or "generator" not in found:
        raise FedspkError(
            f"{path}: does not say which generator its devices trained against; give a run of "
            "`fedspk simulate --impostors speech,gan` by this version of fedspk."
        )
    try:
        return _Run.model_validate(found)
    except ValidationError as error:
        raise FedspkError(f"{path}: holds no results of a run ({first_fault(error)}).") from error
