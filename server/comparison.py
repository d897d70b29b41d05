"""Two versions side by side: what differs, and which one errs less."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from fedspk.release import Manifest


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Difference(_Answer):
    """A field that two manifests do not share, by its dotted name; None where one has none."""

    field: str
    a: Any
    b: Any


class ThresholdPair(_Answer):
    """The thresholds of two versions at one false-accept rate (0 to 1)."""

    false_accept_rate: float
    a: float | None
    b: float | None


class Comparison(_Answer):
    """Version `b` compared with version `a`.

    Args:
        a, b: their manifests.
        same_weights: whether profiles of one can be used with the other.
        eer_difference: b's EER minus a's, in points; None unless both were evaluated on one corpus.
        intervals_overlap: whether the 95 % intervals of the EERs do: then it may be chance.
        length_difference: of the model files, in bytes.
        thresholds: by false-accept rate, rising.
        configuration: what differs in architecture, front end and training.
    """

    a: Manifest
    b: Manifest
    same_weights: bool
    eer_difference: float | None
    intervals_overlap: bool | None
    length_difference: int
    thresholds: tuple[ThresholdPair, ...]
    configuration: tuple[Difference, ...]


def compare(a: Manifest, b: Manifest) -> Comparison:
    """Compare two versions of one kind."""
    difference, overlap = _evaluations(a, b)
    return Comparison(
        a=a,
        b=b,
        same_weights=a.content_hash == b.content_hash,
        eer_difference=difference,
        intervals_overlap=overlap,
        length_difference=b.length - a.length,
        thresholds=_thresholds(a, b),
        configuration=_configuration(a, b),
    )


def _evaluations(a: Manifest, b: Manifest) -> tuple[float | None, bool | None]:
    before, after = a.evaluation, b.evaluation
    if before is None or after is None or before.corpus != after.corpus:
        return None, None
    (low, high), (other_low, other_high) = before.eer_interval, after.eer_interval
    return after.eer - before.eer, low <= other_high and other_low <= high


def _thresholds(a: Manifest, b: Manifest) -> tuple[ThresholdPair, ...]:
    of_a = {each.false_accept_rate: each.threshold for each in a.thresholds}
    of_b = {each.false_accept_rate: each.threshold for each in b.thresholds}
    return tuple(
        ThresholdPair(false_accept_rate=rate, a=of_a.get(rate), b=of_b.get(rate))
        for rate in sorted({*of_a, *of_b})
    )


def _configuration(a: Manifest, b: Manifest) -> tuple[Difference, ...]:
    parts = {"architecture", "training", "privacy", "minimum_client"}
    of_a = _flat("", a.model_dump(mode="json", include=parts))
    of_b = _flat("", b.model_dump(mode="json", include=parts))
    return tuple(
        Difference(field=field, a=of_a.get(field), b=of_b.get(field))
        for field in sorted({*of_a, *of_b})
        if of_a.get(field) != of_b.get(field)
    )


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Return the leaves of nested dictionaries by dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        found |= _flat(f"{prefix}.{key}" if prefix else key, each)
    return found
