"""What is published, as the pages show it: versions, their evaluations, channels and metadata."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from fedspk.release import CHANNELS, Channel, ChannelName, Evaluation, Kind, Manifest
from server.page.charts import Scale
from server.page.words import count_of, show_span
from server.repository import LIFETIMES, State

if TYPE_CHECKING:
    from server.service import View

_CHARTED = 60
"""So many versions fit side by side on a phone."""


@dataclass(frozen=True)
class Catalogue:
    """All that is published at one instant; versions newest first."""

    state: State
    models: Mapping[int, Manifest]
    generators: Mapping[int, Manifest]
    channels: Mapping[ChannelName, Channel]

    @classmethod
    def of(cls, view: View) -> Catalogue:
        """Return what a view of the repository holds."""
        manifests = sorted(view.manifests, key=lambda each: each.version, reverse=True)
        return cls(
            view.state,
            {each.version: each for each in manifests if each.kind == "model"},
            {each.version: each for each in manifests if each.kind == "gan"},
            view.channels,
        )

    def manifests(self, kind: Kind) -> Mapping[int, Manifest]:
        """Return the versions of a kind."""
        return self.models if kind == "model" else self.generators

    def channels_of(self, version: int) -> list[ChannelName]:
        """Return the channels that name a version, the widest first."""
        named = {name for name, channel in self.channels.items() if channel.version == version}
        return [name for name in reversed(CHANNELS) if name in named]

    def corpus(self) -> str | None:
        """Return the corpus on which the newest evaluated version was measured."""
        found = (each.evaluation.corpus for each in self.models.values() if each.evaluation)
        return next(found, None)

    def metadata(self, now: datetime) -> list[Expiry]:
        """Return until when each role's metadata count, the first to expire first."""
        found = [
            Expiry.of(role, metadata.signed.version, metadata.signed.expires, now)
            for role, metadata in self.state.roles().items()
        ]
        return sorted(found, key=lambda each: each.expires)


@dataclass(frozen=True)
class Expiry:
    """Until when a role's metadata count; `late` when they should have been signed again."""

    role: str
    version: int
    expires: datetime
    left: timedelta
    late: bool

    @classmethod
    def of(cls, role: str, version: int, expires: datetime, now: datetime) -> Expiry:
        """Judge metadata at a time: they are signed again after half of their lifetime."""
        left = expires - now
        return cls(role, version, expires, left, left < LIFETIMES[role] / 3)

    @property
    def expired(self) -> bool:
        """Whether devices refuse the metadata."""
        return self.left <= timedelta(0)

    def warning(self) -> str:
        """Return what to do about it, in one sentence."""
        if self.expired:
            return (
                f"The {self.role} metadata expired {show_span(self.left)} ago: devices refuse "
                "every update. Run `fedspk server renew`."
            )
        return (
            f"The {self.role} metadata expire in {show_span(self.left)}: "
            "run `fedspk server renew`, or devices will refuse every update."
        )


@dataclass(frozen=True)
class Point:
    """A version in the chart of error rates: `across` in per cent, `top` and `bottom` of its
    interval and `level` of its rate in per cent from above."""

    version: int
    across: float
    top: float
    level: float
    bottom: float
    label: str
    channels: tuple[ChannelName, ...]
    comparable: bool


@dataclass(frozen=True)
class Chart:
    """Equal error rates by version: of the newest, the oldest of them first."""

    points: tuple[Point, ...]
    marks: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, int], ...]

    @classmethod
    def of(cls, catalogue: Catalogue) -> Chart | None:
        """Return the chart; None where fewer than two versions were evaluated."""
        found = [(n, m.evaluation) for n, m in catalogue.models.items() if m.evaluation]
        found = found[:_CHARTED][::-1]
        if len(found) < 2:
            return None
        scale = scale_of([evaluation for _, evaluation in found])
        points = []
        for place, (number, evaluation) in enumerate(found):
            low, high = evaluation.eer_interval
            points.append(
                Point(
                    number,
                    _across(place, len(found)),
                    100 - scale.at(high),
                    100 - scale.at(evaluation.eer),
                    100 - scale.at(low),
                    f"Version {number}: EER {evaluation.eer:.2f} % ({low:.2f} to {high:.2f})",
                    tuple(catalogue.channels_of(number)),
                    evaluation.corpus == catalogue.corpus(),
                )
            )
        marks = [(100 - scale.at(mark), f"{mark:.{scale.digits}f}") for mark in scale.marks]
        step = next(step for step in (1, 2, 5, 10, 20) if len(points) / step <= 7)
        ticks = [(point.across, point.version) for point in points if point.version % step == 0]
        return cls(tuple(points), tuple(marks), tuple(ticks))


def scale_of(evaluations: Iterable[Evaluation]) -> Scale:
    """Return a scale on which every evaluation's interval fits."""
    return Scale.over([bound for each in evaluations for bound in each.eer_interval])


def facts(manifest: Manifest) -> list[tuple[str, Mapping[str, Any]]]:
    """Return all configuration of a version, by heading."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    if manifest.training is not None:
        config = manifest.training.config
        found.append(("Training", config if isinstance(config, dict) else {"hash": config}))
    if manifest.architecture is not None:
        encoder = {"encoder": manifest.architecture.encoder, **manifest.architecture.encoder_params}
        found += [("Encoder", encoder), ("Front end", manifest.architecture.front_end)]
    if manifest.generator is not None:
        found += [("Front end", manifest.generator.front_end), ("Report", manifest.report)]
    return found


@dataclass(frozen=True)
class Notice:
    """What asks for an operator, and the page that shows more; `urgent` when devices suffer."""

    sentence: str
    address: str = ""
    urgent: bool = False


def attention(catalogue: Catalogue, failed: int, expiries: Collection[Expiry]) -> list[Notice]:
    """Return what asks for an operator; nothing when all is well."""
    found = [Notice(each.warning(), urgent=each.expired) for each in expiries if each.late]
    if catalogue.models and "stable" not in catalogue.channels:
        found.append(
            Notice(
                "The channel stable names no version: devices have none to follow. "
                "Run `fedspk server promote`.",
                "/versions",
            )
        )
    if failed:
        told = f"{count_of(failed, 'device')} could not change to another version."
        found.append(Notice(told, "/devices?state=failed"))
    return found


def _across(place: int, count: int) -> float:
    return round(2.5 + 95 * (place / (count - 1)), 2)
