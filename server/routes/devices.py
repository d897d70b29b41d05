"""Devices: invited and revoked by operators, and what they say themselves."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from fedspk.api import API, DeviceId, Registration, Report
from fedspk.release import Version
from server.records import DeviceRecord, DeviceStage, Fleet, Operator
from server.routes.access import Changer, Reader, Serving, Signed, SignedMs, allow
from server.routes.messages import REFUSALS, Devices, Invited, NewInvitation, Registered

router = APIRouter(prefix=API, tags=["devices"], responses=REFUSALS)

Id = Annotated[DeviceId, Path()]
Named = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


@router.post("/devices", status_code=201, responses={200: {"model": Registered}})
def register(
    registration: Registration, signature: Signed, service: Serving, response: Response
) -> Registered:
    """Register a device with its one-time token; 200 if the same device did so before."""
    signed_ms = signature.check(registration.device, bytes.fromhex(registration.public_key))
    record, is_new = service.registry.register(registration, signed_ms)
    if not is_new:
        response.status_code = 200
    return Registered(device=registration.device, name=record.name)


@router.put("/devices/{device}/report", status_code=204)
def report(device: Id, report: Report, signed_ms: SignedMs, service: Serving) -> None:
    """Say what the device runs."""
    service.registry.report(device, report, signed_ms)


@router.post("/invitations", status_code=201)
def invite(invitation: NewInvitation, operator: Changer, service: Serving) -> Invited:
    """Make a one-time token for a device."""
    lifetime = timedelta(days=invitation.days)
    made = service.registry.invite(invitation.name, lifetime, operator.name)
    return Invited(name=made.name, token=made.token, expires_at=made.expires_at)


@router.delete("/devices/{device}")
def revoke(device: Named, operator: Changer, service: Serving) -> DeviceRecord:
    """Revoke a device for good, by its id or its name: one that is invited has only a name."""
    return service.registry.revoke(device, operator.name)


@router.get("/devices")
def devices(
    _: Reader,
    service: Serving,
    state: DeviceStage | None = None,
    version: Version | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> Devices:
    """List devices by name."""
    found = service.registry.devices(state, version, limit, offset)
    return Devices(devices=found, total=service.registry.count(state, version))


@router.get("/devices/{device}")
def device(device: Id, _: Reader, service: Serving) -> DeviceRecord:
    """Show one device."""
    return service.registry.device(device)


@router.get("/fleet")
def fleet(_: Reader, service: Serving) -> Fleet:
    """Count devices by what they run."""
    return service.registry.fleet()


@router.get("/register")
def register_of_keys(
    _: Annotated[Operator, Depends(allow("viewer", "operator", "aggregator"))], service: Serving
) -> dict[str, Any]:
    """Return the keys of all registered devices: a file that the aggregator can load."""
    keys = service.registry.device_register().keys
    return {"format": 1, "devices": {device: key.hex() for device, key in sorted(keys.items())}}
