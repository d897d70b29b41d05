"""What every request passes: a limit to its body, a count, and a line in the log if it matters.

The limit depends on who asks: nobody's body is read, let alone parsed, beyond what a device may
send, unless an operator's token comes with it. What answers say nothing about is kept by no cache.

The log has lines for changes, refusals of them and failures; never a header, a query or a body.
What devices ask all day long is counted only.
"""

from __future__ import annotations

import json
import logging
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedspk.api import API
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.metrics import Metrics

log = logging.getLogger("fedspk.server")

UNKNOWN_TOKEN = "no operator has this token."
MOST_FROM_STRANGERS = 8 << 10
"""Registrations, reports and the login are shorter, in bytes."""
MOST_BODY = 1 << 20
MOST_PROPOSAL = 8 << 20
"""Release metadata grow with every version."""


class Traffic:
    """ASGI middleware round a whole app.

    Args:
        app: the app.
        metrics: where answers are counted.
        most_upload: longest model file that is taken, in bytes.
        is_known: says whether a token is an operator's.
        refuse: answers with an error that `is_known` raises.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        most_upload: int,
        is_known: Callable[[str], bool],
        refuse: Callable[[Request, Exception], Response],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._most_upload = most_upload
        self._is_known = is_known
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._answer(scope, receive, sending)
        finally:
            seconds = perf_counter() - start
            route = template(scope)
            self._metrics.count(scope["method"], route, status, seconds)
            _tell(scope, route, status, seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        length = int(declared) if declared.isdecimal() else MOST_FROM_STRANGERS + 1
        token = _token(headers)
        most, is_known = self._most(scope["path"]), False
        if token and (length > MOST_FROM_STRANGERS or "transfer-encoding" in headers):
            try:
                is_known = await run_in_threadpool(self._is_known, token)
            except FedspkError as error:
                await self._refuse(Request(scope), error)(scope, receive, send)
                return
        if not is_known:
            most = min(most, MOST_FROM_STRANGERS)
        refusal = _too_long(most, has_token=bool(token))
        if length > most:
            answer = JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)
            await answer(scope, receive, send)
        else:
            await self._app(scope, _limited(receive, most, refusal), send)

    def _most(self, path: str) -> int:
        if path.startswith(f"{API}/uploads/"):
            return self._most_upload
        return MOST_PROPOSAL if path == f"{API}/proposals" else MOST_BODY


def template(scope: Scope) -> str:
    """Return a request's path without what differs from one to the next, for logs and metrics."""
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    first = scope["path"].partition("/")[2].partition("/")[0]
    return f"/{first}/..." if first in ("metadata", "targets") else "other"


def told(event: str, **fields: object) -> str:
    """Return a log line: what happened, and `key=value`, quoted where it has to be.

    >>> told("request", status=201, who="ann b")
    'request status=201 who="ann b"'
    """
    words = [event]
    for key, value in fields.items():
        text = str(value)
        words.append(f"{key}={text if text.isalnum() or _is_plain(text) else json.dumps(text)}")
    return " ".join(words)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and not {" ", '"', "="} & {*text} and text != ""


def _token(headers: Headers) -> str:
    """Return the token that came with a request, or nothing."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _limited(receive: Receive, most: int, refusal: HTTPException) -> Receive:
    """Return `receive` that refuses to give more than `most` bytes of a body."""
    length = 0

    async def receiving() -> Message:
        nonlocal length
        message = await receive()
        length += len(message.get("body", b""))
        if length > most:
            raise refusal
        return message

    return receiving


def _too_long(most: int, *, has_token: bool) -> HTTPException:
    headers = {"Connection": "close"}
    if most != MOST_FROM_STRANGERS:
        return HTTPException(413, f"the body is longer than {most} bytes.", headers)
    headers["WWW-Authenticate"] = "Bearer, Fedspk-Device"
    reason = f"a body of more than {most} bytes needs an operator's token: Authorization: Bearer."
    return HTTPException(401, UNKNOWN_TOKEN if has_token else reason, headers)


def _tell(scope: Scope, route: str, status: int, seconds: float) -> None:
    changes = scope["method"] not in ("GET", "HEAD")
    is_routine = route == f"{API}/devices/{{device}}/report" and status < 400
    if status < 500 and (is_routine or not changes):
        return
    level = logging.ERROR if status >= 500 else logging.WARNING if status >= 400 else logging.INFO
    who = scope.get("state", {}).get("who", "-")
    fields = {"method": scope["method"], "route": route, "status": status, "who": who}
    log.log(level, told("request", **fields, ms=round(seconds * 1000)))
