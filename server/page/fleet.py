"""Devices, as the pages show them: which version they serve, and what holds them up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from fedspk.api import DeviceState
from fedspk.release import Channel, ChannelName, followed
from server.page.catalogue import Catalogue
from server.page.words import FAILURES, show_span
from server.records import DeviceRecord, DeviceStage, Fleet, Outline, StateCounts

Standing = Literal[
    "current", "behind", "updating", "failed", "silent", "quiet", "invited", "revoked"
]

STANDINGS: Mapping[Standing, str] = {
    "current": "up to date",
    "behind": "behind",
    "updating": "updating",
    "failed": "failed",
    "quiet": "not heard of",
    "silent": "never reported",
    "invited": "invited",
    "revoked": "revoked",
}
"""How a device stands, in words, in the order of the filter."""

QUIET = timedelta(days=7)
"""A device that polls and is not seen for so long is off, or cut off."""


@dataclass(frozen=True)
class Device:
    """A device beside the channel that it follows."""

    record: DeviceRecord
    standing: Standing
    channel: Channel | None

    @classmethod
    def of(cls, record: DeviceRecord, catalogue: Catalogue, now: datetime) -> Device:
        """Judge a device at a time by what it reported."""
        channel, report = _channel(record.device, catalogue), record.report
        reported, version = (report.state, report.version) if report else (None, None)
        standing = _standing(record.state, reported, version, record.last_seen, channel, now)
        return cls(record, standing, channel)

    @property
    def version(self) -> int | None:
        """The version that it reported."""
        return self.record.report.version if self.record.report else None

    def told(self, now: datetime) -> str:
        """Return what the device does, and why, in a sentence or two."""
        record, report = self.record, self.record.report
        if record.state == "revoked":
            return "Revoked: the server takes no more reports from it."
        if record.state == "invited":
            return "Invited: its one-time token has not been used yet."
        if report is None:
            return "Registered, but it has not reported yet."
        serves = f"version {report.version}" if report.version else "a model from a file"
        target = f" to version {report.attempted}" if report.attempted else ""
        if report.state == "updating":
            said = f"Changes{target} now; {serves} answers meanwhile."
        elif report.state == "failed":
            why = FAILURES[report.failure or "other"]
            said = f"Could not change{target} because {why}. It goes on with {serves}."
        else:
            said = f"Serves {serves}; all its users are enrolled under it."
        if self.channel and report.state == "serving" and report.version != self.channel.version:
            said += f" Its channel names version {self.channel.version} now."
        if self.standing == "quiet" and record.last_seen:
            said += f" Nothing has been heard of it for {show_span(now - record.last_seen)}."
        return said


@dataclass(frozen=True)
class Bar:
    """How many devices use a version (None: a model from a file), by what they say."""

    version: int | None
    counts: StateCounts
    channels: tuple[ChannelName, ...]

    @property
    def total(self) -> int:
        """All devices of the bar."""
        return self.counts.serving + self.counts.updating + self.counts.failed


def bars(fleet: Fleet, catalogue: Catalogue) -> list[Bar]:
    """Return the fleet by version: those that a channel names or a device uses, newest first."""
    named = {channel.version for name, channel in catalogue.channels.items() if name != "training"}
    counted = {**dict.fromkeys(named, StateCounts()), **fleet.versions}
    found = [
        Bar(version, counted[version], tuple(catalogue.channels_of(version)))
        for version in sorted(counted, reverse=True)
    ]
    from_file = Bar(None, fleet.from_file, ())
    return [*found, from_file] if from_file.total else found


def standing_of(each: Outline, catalogue: Catalogue, now: datetime) -> Standing:
    """Judge a device of a long list at a time."""
    channel = _channel(each.device, catalogue)
    return _standing(each.state, each.reported, each.version, each.last_seen, channel, now)


def _channel(device: str | None, catalogue: Catalogue) -> Channel | None:
    stable, canary = catalogue.channels.get("stable"), catalogue.channels.get("canary")
    return followed(device, stable, canary) if device else None


def _standing(
    stage: DeviceStage,
    reported: DeviceState | None,
    version: int | None,
    last_seen: datetime | None,
    channel: Channel | None,
    now: datetime,
) -> Standing:
    if stage != "registered":
        return stage
    if reported is None:
        return "silent"
    if last_seen is not None and now - last_seen > QUIET:
        return "quiet"
    if reported != "serving":
        return reported
    return "current" if channel is None or version == channel.version else "behind"
