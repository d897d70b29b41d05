"""What the registry tells of devices and operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict

from fedspk.api import DeviceId, DeviceState, Report
from fedspk.release import Hash

Role = Literal["viewer", "operator", "aggregator"]
DeviceStage = Literal["invited", "registered", "revoked"]

ROLES: tuple[Role, ...] = get_args(Role)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class DeviceRecord(_Answer):
    """What is known of a device.

    Args:
        name: that the operator gave it.
        state: "invited" until it registers, and "revoked" for good.
        device: the id that it gave itself; None while it is invited.
        public_key: Ed25519, 64 hex digits; None while it is invited.
        last_seen: when it last sent a signed request.
        report: its latest report, and `reported_at` when that came.
    """

    name: str
    state: DeviceStage
    device: DeviceId | None
    public_key: Hash | None
    invited_at: datetime
    registered_at: datetime | None
    revoked_at: datetime | None
    last_seen: datetime | None
    report: Report | None
    reported_at: datetime | None


class Outline(NamedTuple):
    """As much of a device's record as tells how it stands, for long lists.

    Args:
        row: which record it is, for `Registry.records`.
        name, state, device, last_seen: see `DeviceRecord`.
        reported, version: `state` and `version` of its latest report.
    """

    row: int
    name: str
    state: DeviceStage
    device: str | None
    last_seen: datetime | None
    reported: DeviceState | None
    version: int | None


class StateCounts(_Answer):
    """How many devices with one version say what of themselves (`fedspk.api.DeviceState`)."""

    serving: int = 0
    updating: int = 0
    failed: int = 0


class Fleet(_Answer):
    """Counts of devices.

    Args:
        versions: registered devices that reported, by the version in use, rising.
        from_file: those of them whose model is no published version.
        unreported: registered devices that never reported.
        invited: those that have not registered yet.
        revoked: those that no longer count.
        total: of all registered devices.
    """

    versions: Mapping[int, StateCounts]
    from_file: StateCounts
    unreported: int
    invited: int
    revoked: int
    total: int


@dataclass(frozen=True)
class Operator:
    """Who may use the API and the page."""

    name: str
    role: Role


@dataclass(frozen=True)
class Invitation:
    """A device's one-time token, and until when it counts."""

    name: str
    token: str
    expires_at: datetime
