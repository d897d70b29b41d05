"""The main server: static files for devices, the API, the page, health and metrics, as one app.

All answers of the API but files are JSON; a refusal is `{"error": one sentence}`. Why the server
cannot answer is for its log: paths, hosts and names are no stranger's business.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from threading import Lock
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from fedspk import __version__
from fedspk.errors import FedspkError
from fedspk.release import Channel, ChannelName, Kind, Manifest
from server import operations
from server.faults import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
    WrongClockError,
)
from server.metrics import Metrics
from server.registry import Registry, utc_now
from server.repository import Repository, Signers, State
from server.traffic import Traffic, template, told
from server.uploads import Uploads

log = logging.getLogger("fedspk.server")

MOST_UPLOAD = 2 << 30
"""No model file that is uploaded is longer, in bytes."""

_STATUS: dict[type[FedspkError], int] = {
    UnauthenticatedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    UnavailableError: 503,
}


UNAVAILABLE = "the server cannot use its files or its database now; its log says why."
"""What everybody is told instead of the reason."""
_DISK_FULL = "the server's disk is full; free some space there and try again."


@dataclass(frozen=True)
class View:
    """The repository at one instant, and what is published in it (`operations.overview`)."""

    state: State
    overview: dict[str, Any]

    @cached_property
    def manifests(self) -> list[Manifest]:
        """All versions: speaker models, then generators, each rising."""
        return [Manifest.model_validate(each) for each in self.overview["versions"]]

    @cached_property
    def channels(self) -> dict[ChannelName, Channel]:
        """The channels that have been set."""
        found = [Channel.model_validate(each) for each in self.overview["channels"].values()]
        return {each.name: each for each in found}

    def manifest(self, kind: Kind, version: int) -> Manifest:
        """Return one version.

        Raises:
            NotFoundError: there is no such version.
        """
        for each in self.manifests:
            if (each.kind, each.version) == (kind, version):
                return each
        raise NotFoundError(f"there is no {kind} version {version}.")


@dataclass
class Service:
    """What the routes work on.

    Args:
        repository: the versions.
        registry: devices and operators.
        signers: the private keys at hand; without those of a release, the API publishes none.
        clock: tells the time in UTC.
        most_upload: longest model file that is taken, in bytes.
    """

    repository: Repository
    registry: Registry
    signers: Signers
    clock: Callable[[], datetime] = utc_now
    most_upload: int = MOST_UPLOAD
    _seen: tuple[object, View] | None = field(default=None, repr=False)
    _seeing: Lock = field(default_factory=Lock, repr=False)

    @property
    def uploads(self) -> Uploads:
        """Where model files wait until they are published."""
        return Uploads(self.repository.folder / "uploads")

    def view(self) -> View:
        """Return the present state, whoever changed it; read again only after a change.

        Raises:
            UnavailableError: the repository is damaged.
        """
        with self._seeing:
            present = self._fingerprint()
            if self._seen is None or self._seen[0] != present:
                try:
                    state = self.repository.read()
                    overview = operations.overview(self.repository, state)
                except FedspkError as error:  # nobody who asks can help that
                    raise UnavailableError(str(error)) from error
                self._seen = present, View(state, overview)
            return self._seen[1]

    def _fingerprint(self) -> object:
        # Every new timestamp is another file, and every new root a new name in the folder.
        folder = self.repository.metadata
        try:
            file, names = (folder / "timestamp.json").stat(), folder.stat()
        except OSError as error:
            raise UnavailableError(f"{folder}: cannot be read ({error.strerror}).") from error
        return file.st_ino, file.st_mtime_ns, names.st_mtime_ns


def build_app(service: Service) -> FastAPI:
    """Return the app of a main server."""
    from server.page import page_routes
    from server.routes import ROUTERS
    from server.static import static_routes

    app = FastAPI(
        title="fedspk main server",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    metrics = Metrics(service)
    app.state.service, app.state.metrics = service, metrics
    app.add_middleware(
        Traffic,
        metrics=metrics,
        most_upload=service.most_upload,
        is_known=lambda token: service.registry.operator(token) is not None,
        refuse=_refuse,
    )
    for router in (static_routes(service), page_routes(service), *ROUTERS):
        app.include_router(router)
    app.add_exception_handler(FedspkError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_input)
    app.add_exception_handler(HTTPException, _refuse_request)
    app.add_exception_handler(ClientDisconnect, _leave)
    app.add_exception_handler(Exception, _fail)
    return app


def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer with the sentence of an error and the status of its kind."""
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 0)
    if status == 0:
        status = _status_of(error.__cause__)
    body: dict[str, Any] = {"error": str(error)}
    if status >= 500:
        log.error(told("failed", route=template(request.scope), reason=error))
        body = {"error": _DISK_FULL if status == 507 else UNAVAILABLE}
    if isinstance(error, WrongClockError):
        body["server_time"] = error.server_ms
    headers = {"WWW-Authenticate": "Bearer, Fedspk-Device"} if status == 401 else None
    return JSONResponse(body, status, headers)


def _status_of(cause: BaseException | None) -> int:
    """Return whose fault an error without a kind is: the request's, or the disk's."""
    if not isinstance(cause, OSError) or cause.errno is None:
        return 422
    return 507 if cause.errno in (errno.ENOSPC, errno.EDQUOT) else 503


def _refuse_input(_: Request, error: Exception) -> JSONResponse:
    """Answer what is wrong with a body or a parameter, and where; not what was sent."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return JSONResponse({"error": f"{where}: {fault['msg']}."}, 422)


def _refuse_request(_: Request, error: Exception) -> JSONResponse:
    """Answer for a path or a method that is none."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


def _leave(_: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Answer somebody who has hung up in the middle of a request, for the log alone."""
    return JSONResponse({"error": "the client hung up."}, 400)


def _fail(_: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Answer for an error of the server's own; uvicorn logs it."""
    return JSONResponse({"error": "the server failed; its log says why."}, 500)
