"""What is published, and what has been done."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from fedspk.api import API
from fedspk.release import Kind, Manifest, Version
from server.comparison import Comparison, compare
from server.routes.access import Reader, Serving
from server.routes.messages import REFUSALS, AuditPage, Published

router = APIRouter(prefix=API, tags=["versions"], responses=REFUSALS)

Number = Annotated[Version, Path()]


@router.get("/versions")
def versions(_: Reader, service: Serving) -> Published:
    """List all versions with their manifests, and all channels."""
    view = service.view()
    return Published(versions=view.manifests, channels=[*view.channels.values()])


@router.get("/versions/{kind}/{version}")
def version(kind: Kind, version: Number, _: Reader, service: Serving) -> Manifest:
    """Show one version."""
    return service.view().manifest(kind, version)


@router.get("/versions/{a}/compare/{b}")
def comparison(
    a: Number, b: Number, _: Reader, service: Serving, kind: Kind = "model"
) -> Comparison:
    """Compare two versions."""
    view = service.view()
    return compare(view.manifest(kind, a), view.manifest(kind, b))


@router.get("/channels")
def channels(_: Reader, service: Serving) -> Published:
    """List the channels, and the versions that they name."""
    view = service.view()
    named = {each.version for each in view.channels.values()}
    found = [each for each in view.manifests if each.kind == "model" and each.version in named]
    return Published(versions=found, channels=[*view.channels.values()])


@router.get("/audit")
def audit(
    _: Reader,
    service: Serving,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
) -> AuditPage:
    """Show who did what, newest first."""
    entries, older = service.repository.audit.page(limit, before)
    return AuditPage(entries=entries, before=older)
