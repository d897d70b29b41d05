"""Changes: models uploaded and published, channels set, proposals of the other party accepted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from fedspk.api import API, ProposedRelease
from fedspk.proposals import Proposal, release_from
from fedspk.release import Hash
from server import operations, releasing
from server.records import Operator
from server.releasing import Make
from server.repository import Repository, State
from server.routes.access import Changer, Measuring, Releaser, Serving
from server.routes.messages import (
    REFUSALS,
    NumberedVersion,
    Promotion,
    Publication,
    Released,
    Rollback,
    Uploaded,
)
from server.service import Service

router = APIRouter(prefix=API, tags=["releases"], responses=REFUSALS)

_BLOCK = 1 << 20  # bytes written at once
_FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_PROPOSAL = {"application/json": {"schema": ProposedRelease.model_json_schema()}}


@router.put(
    "/uploads/{sha256}",
    status_code=201,
    responses={200: {"model": Uploaded}},
    openapi_extra={"requestBody": {"required": True, "content": _FILE}},
)
async def upload(
    sha256: Annotated[Hash, Path()],
    request: Request,
    _: Releaser,
    service: Serving,
    response: Response,
) -> Uploaded:
    """Keep a model file to be published within a day; 200 if it was there already."""
    with await run_in_threadpool(service.uploads.begin) as incoming:
        pending = bytearray()
        async for block in request.stream():
            pending += block
            if len(pending) >= _BLOCK:
                await run_in_threadpool(incoming.write, bytes(pending))
                pending.clear()
        await run_in_threadpool(incoming.write, bytes(pending))
        length, is_new = await run_in_threadpool(incoming.keep, sha256)
    if not is_new:
        response.status_code = 200
    return Uploaded(sha256=sha256, length=length)


@router.post("/versions", status_code=201)
def publish(
    wanted: Publication, operator: Changer, service: Serving, metrics: Measuring
) -> Released:
    """Publish an uploaded model as the next version."""
    model = service.uploads.path(wanted.model)

    def make(repository: Repository, state: State) -> Proposal:
        return operations.publication(
            repository, state, model, wanted.manifest, wanted.channel, wanted.share
        )

    with metrics.publishing("publish"):
        return _released(service, "publish", operator, make, wanted.forced)


@router.post("/promotions", status_code=201)
def promote(wanted: Promotion, operator: Changer, service: Serving, metrics: Measuring) -> Released:
    """Let a channel name a published version."""

    def make(repository: Repository, state: State) -> Proposal:
        return operations.promotion(repository, state, wanted.version, wanted.channel, wanted.share)

    with metrics.publishing("promote"):
        return _released(service, "promote", operator, make, wanted.forced)


@router.post("/rollbacks", status_code=201)
def roll_back(
    wanted: Rollback, operator: Changer, service: Serving, metrics: Measuring
) -> Released:
    """Publish an old version's weights as the next version, for all channels that are ahead."""

    def make(repository: Repository, state: State) -> Proposal:
        return operations.rollback(repository, state, wanted.to)

    with metrics.publishing("rollback"):
        return _released(service, "rollback", operator, make)


@router.post(
    "/proposals",
    status_code=201,
    responses={200: {"model": Released}},
    openapi_extra={"requestBody": {"required": True, "content": _PROPOSAL}},
)
async def propose(
    request: Request,
    operator: Releaser,
    service: Serving,
    metrics: Measuring,
    response: Response,
) -> Released:
    """Sign and publish a release that the other party made; 200 if it is the present one."""
    body = await request.body()

    def accept() -> Released:
        wanted = ProposedRelease.from_json(body)
        metadata = release_from(wanted.release.encode(), "release")
        if releasing.is_released(service.view().state, metadata):
            response.status_code = 200
            return Released(release=metadata.signed.version, versions=[], channels=[])

        def make(_: Repository, state: State) -> Proposal:
            proposal = releasing.proposed(service, state, metadata, wanted.files)
            if operator.role == "aggregator":
                releasing.check_aggregator(service, state, proposal)
            return proposal

        with metrics.publishing("accept"):
            return _released(service, "accept", operator, make)

    return await run_in_threadpool(accept)


def _released(
    service: Service, action: str, operator: Operator, make: Make, forced: str | None = None
) -> Released:
    proposal = releasing.release(service, action, operator.name, make, forced)
    changes = proposal.changes
    return Released(
        release=proposal.release.signed.version,
        versions=[NumberedVersion(kind=kind, version=number) for kind, number in changes.versions],
        channels=[proposal.channel(name) for name in changes.channels],
    )
