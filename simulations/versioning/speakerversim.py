"""SpeakerVerSim's YAML configuration, read into ours.

Its times become `compat`'s, one for one. For the default model they are taken as what they stand
for, the upload and the computing of an utterance of five seconds (`_AUDIO_S`), so that the same
file can be simulated by either model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedspk.errors import FedspkError

_AUDIO_S = 5.0
_AUDIO_MBIT = 1.28  # of five seconds at 16 kHz and 16 bit

# Its key -> (our field, what one of its units is in ours).
_SCALED: Mapping[str, tuple[tuple[str, float], ...]] = {
    "time_to_run": (("hours", 1 / 3600),),
    "client_request_interval": (("interval", 1.0),),
    "version_query_interval": (("sync_interval", 1.0),),
    "worker_update_mean_time": (("rollout.mean_s", 1.0),),
    "client_frontend_latency": (("compat.client_frontend_s", 1.0),),
    "frontend_worker_latency": (("compat.frontend_worker_s", 1.0),),
    "database_read_latency": (("compat.database_read_s", 1.0), ("database.read_s", 1.0)),
    "database_write_latency": (("compat.database_write_s", 1.0), ("database.write_s", 1.0)),
    "worker_inference_latency": (
        ("compat.inference_s", 1.0),
        ("worker.real_time_factor", 1 / _AUDIO_S),
    ),
    "flops_per_inference": (
        ("compat.gflops_per_inference", 1e-9),
        ("worker.gflops_per_second", 1e-9 / _AUDIO_S),
    ),
}
_LINKS = {
    "client_frontend_latency": "links.client_mbit_per_s",
    "frontend_worker_latency": "links.worker_mbit_per_s",
}
_COUNTS = {"num_cloud_workers": "workers", "num_users": "users"}
_WITHOUT_EFFECT = {"log_verbosity", "print_stats"}
_KEYS = {*_SCALED, *_COUNTS, *_WITHOUT_EFFECT, "strategy", "user_distribution"}


def is_speakerversim(values: Mapping[str, Any]) -> bool:
    """Return whether a file's fields are SpeakerVerSim's."""
    return any(key in _KEYS for key in values)


def translate(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return our fields for SpeakerVerSim's, in tables; the model is `compat`.

    Args:
        values: what its YAML file holds.
        file: named in errors.

    Raises:
        FedspkError: a key is not SpeakerVerSim's, or a value is not a number where one must be.
    """
    if unknown := sorted(set(values) - _KEYS):
        raise FedspkError(
            f"{file}: {unknown[0]} is no key of SpeakerVerSim's; its keys and ours cannot be "
            "mixed in one file."
        )
    fields: dict[str, Any] = {"model": "compat", "arrivals.kind": "regular"}
    for key, targets in _SCALED.items():
        if key in values:
            number = _number(values[key], key, file)
            fields |= {field: number * factor for field, factor in targets}
    for key, field in _LINKS.items():
        if key in values:
            fields[field] = _AUDIO_MBIT / _number(values[key], key, file)
    fields |= {field: values[key] for key, field in _COUNTS.items() if key in values}
    if "strategy" in values:
        fields["strategies"] = [values["strategy"]]
    if "user_distribution" in values:
        fields["user_rates.kind"] = values["user_distribution"]
    return _nested(fields)


def _number(value: Any, key: str, file: Path) -> float:
    try:
        number = float(value)  # YAML reads 2.1e9 as text
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < math.inf:
        raise FedspkError(f"{file}: {key} is {value!r}; give a number above zero.")
    return number


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in fields.items():
        table, dot, field = dotted.rpartition(".")
        (nested.setdefault(table, {}) if dot else nested)[field] = value
    return nested
