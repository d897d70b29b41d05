"""Whether the server works, for whoever watches it."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel

from fedspk.errors import FedspkError
from server.routes.access import Measuring, Reader, Serving
from server.routes.messages import REFUSALS

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """What works.

    Args:
        repository: whether it can be read, and its metadata have not expired.
        database: whether it answers.
        timestamp_seconds: until the timestamp expires and devices refuse; below 0 it has.
    """

    repository: bool
    database: bool
    timestamp_seconds: int | None


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", responses={503: {"model": Health}})
def healthz(service: Serving, response: Response) -> Health:
    """Say whether all works; nothing here is secret, so that no token is needed."""
    left = None
    try:
        expires = service.view().state.timestamp.signed.expires
        left = int((expires - service.clock()).total_seconds())
    except FedspkError:
        pass
    try:
        service.registry.ping()
        database = True
    except FedspkError:
        database = False
    health = Health(
        repository=left is not None and left > 0, database=database, timestamp_seconds=left
    )
    if not (health.repository and health.database):
        response.status_code = 503
    return health


@router.get(
    "/metrics",
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **REFUSALS,
    },
    response_class=Response,
)
def metrics(_: Reader, metrics: Measuring) -> Response:
    """Tell Prometheus of traffic and fleet: not for everybody, so a viewer's token is needed."""
    return Response(metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
