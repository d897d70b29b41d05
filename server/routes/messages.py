"""Bodies of the API that no device reads or writes; those of devices are in `fedspk.api`."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from fedspk.api import DeviceId
from server.records import DeviceRecord


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Refusal(_Body):
    """Why a request was refused, in one sentence.

    Args:
        server_time: in milliseconds since 1970, where a device's clock is wrong.
    """

    error: str
    server_time: int | None = None


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
