"""Bodies of the API that no device reads or writes; those of devices are in `fedspk.api`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from fedspk.api import DeviceId
from fedspk.release import Channel, ChannelName, Hash, Kind, Manifest, Version
from server.records import DeviceRecord


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must be a line of text")
    return text


Reason = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
"""Why the evaluation gate is passed by, for the audit log."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Refusal(_Body):
    """Why a request was refused, in one sentence.

    Args:
        server_time: in milliseconds since 1970, where a device's clock is wrong.
    """

    error: str
    server_time: int | None = None


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Refusal},
    "5XX": {"model": Refusal},
}
"""What every route of the API may answer instead."""


class Registered(_Body):
    """The answer to `fedspk.api.Registration`."""

    device: DeviceId
    name: str


class NewInvitation(_Body):
    """Whom to invite, and for how many days the token counts."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    days: float = Field(default=7, gt=0, le=90)


class Invited(_Body):
    """A device's one-time token: nobody can read it again."""

    name: str
    token: str
    expires_at: datetime


class Devices(_Body):
    """A part of the devices, and how many there are in all."""

    devices: list[DeviceRecord]
    total: int


class Published(_Body):
    """All versions and channels."""

    versions: list[Manifest]
    channels: list[Channel]


class AuditPage(_Body):
    """Lines of the audit log, newest first; `before` asks for older ones, if there are any."""

    entries: list[dict[str, Any]]
    before: int | None


class Uploaded(_Body):
    """A model file that can be published."""

    sha256: Hash
    length: int


class Publication(_Body):
    """An uploaded model to be published as the next version.

    Args:
        model: SHA-256 of the upload.
        manifest: any part of its manifest; give `version` so that a repetition is refused.
        channel: which channel is to name it.
        share: of the devices, for the canary channel.
        forced: see `Reason`.
    """

    model: Hash
    manifest: dict[str, JsonValue] = Field(default_factory=dict)
    channel: ChannelName | None = None
    share: float | None = Field(default=None, ge=0, le=1)
    forced: Reason | None = None


class Promotion(_Body):
    """A published version for a channel to name; see `Publication`."""

    version: Version
    channel: ChannelName
    share: float | None = Field(default=None, ge=0, le=1)
    forced: Reason | None = None


class Rollback(_Body):
    """The version whose weights are to be published again."""

    to: Version


class NumberedVersion(_Body):
    """A version of the speaker model or of the generator."""

    kind: Kind
    version: Version


class Released(_Body):
    """What was published: the version of the release metadata, and what is new in it."""

    release: int
    versions: list[NumberedVersion]
    channels: list[Channel]
