"""Trial scores of one device under one arm, and the error rates drawn from them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError
from fedspk.files import write_bytes
from fedspk.metrics import bootstrap_eer, equal_error_rate, min_dcf
from fedspk.seeds import derive

FloatArray: TypeAlias = npt.NDArray[np.floating]

Condition: TypeAlias = Literal["sessions", "within_session", "outsiders", "classifier"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass(frozen=True)
class TrialScores:
    """Scores of target and non-target trials, float32; higher means more like the owner."""

    target: FloatArray
    nontarget: FloatArray


# What one device scored under one arm; a condition that an arm cannot score is absent.
DeviceScores: TypeAlias = Mapping[Condition, TrialScores]


@dataclass(frozen=True)
class DeviceErrors:
    """One device's error rates under one arm: EER in per cent, minDCF in [0, 1]."""

    eer: float
    eer_interval: tuple[float, float]
    min_dcf: float
    eer_within_session: float | None
    eer_outsiders: float | None
    eer_classifier: float | None


def device_errors(folds: Sequence[DeviceScores], seed: int) -> DeviceErrors:
    """Return the device's error rates: the mean over its folds of each fold's rate.

    The interval is the mean of the folds' bootstrap intervals (95 %, resampling trials).
    """
    headline = [fold["sessions"] for fold in folds]
    intervals = [
        bootstrap_eer(scores.target, scores.nontarget, seed=derive(seed, "bootstrap", fold))
        for fold, scores in enumerate(headline)
    ]
    return DeviceErrors(
        eer=100 * float(np.mean([_eer(scores) for scores in headline])),
        eer_interval=(
            100 * float(np.mean([low for low, _ in intervals])),
            100 * float(np.mean([high for _, high in intervals])),
        ),
        min_dcf=float(np.mean([min_dcf(s.target, s.nontarget) for s in headline])),
        eer_within_session=_mean_eer(folds, "within_session"),
        eer_outsiders=_mean_eer(folds, "outsiders"),
        eer_classifier=_mean_eer(folds, "classifier"),
    )


def pooled_scores(devices: Sequence[DeviceScores]) -> TrialScores:
    """Return the headline trials of many devices together, for one detection error curve."""
    return TrialScores(
        target=np.concatenate([device["sessions"].target for device in devices]),
        nontarget=np.concatenate([device["sessions"].nontarget for device in devices]),
    )


def save_scores(path: Path, devices: Sequence[DeviceScores]) -> None:
    """Write one arm's scores of every device as a compressed NumPy archive, atomically."""
    arrays = {
        f"{index}/{condition}/{kind}": getattr(scores, kind).astype(np.float32)
        for index, device in enumerate(devices)
        for condition, scores in device.items()
        for kind in ("target", "nontarget")
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def load_scores(path: Path, devices: int) -> list[DeviceScores]:
    """Read what `save_scores` wrote.

    Raises:
        FedspkError: the file is not a score archive of so many devices.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return [_device(arrays, index) for index in range(devices)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FedspkError(f"{path}: is not a score archive ({error}); remove it.") from error


def _device(arrays: Mapping[str, FloatArray], index: int) -> DeviceScores:
    found: dict[Condition, TrialScores] = {}
    for condition in CONDITIONS:
        prefix = f"{index}/{condition}"
        if f"{prefix}/target" in arrays:
            found[condition] = TrialScores(
                arrays[f"{prefix}/target"], arrays[f"{prefix}/nontarget"]
            )
    if "sessions" not in found:
        raise KeyError(f"device {index}")
    return found


def _mean_eer(folds: Sequence[DeviceScores], condition: Condition) -> float | None:
    if any(condition not in fold for fold in folds):
        return None
    return 100 * float(np.mean([_eer(fold[condition]) for fold in folds]))


def _eer(scores: TrialScores) -> float:
    return equal_error_rate(scores.target, scores.nontarget).value
