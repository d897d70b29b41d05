"""Who sees the pages: operators who have logged in with their token.

The token is exchanged for a session, whose secret a cookie carries that no script reads and no
other site's page sends along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote

from fastapi import HTTPException, Request
from fastapi.responses import RedirectResponse, Response

if TYPE_CHECKING:
    from server.records import Operator
    from server.registry import Registry

COOKIE = "fedspk_session"

_SESSION_SECONDS = 12 * 3600
_LONGEST_FORM = 4096  # bytes


def visitor(registry: Registry, request: Request) -> Operator | None:
    """Return who has logged in; None for nobody."""
    secret = request.cookies.get(COOKIE)
    return registry.session(secret) if secret else None


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that one of our own pages sent."""
    if not _is_ours(request):
        raise HTTPException(403, "Forms are taken from this server's own pages only.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_FORM:
            raise HTTPException(413, "The form is too long.")
    fields = parse_qs(body.decode(errors="replace"))
    return {name: values[0] for name, values in fields.items()}


def _is_ours(request: Request) -> bool:
    """Say whether a browser sends what one of our pages asked for; an old one tells the origin."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host")


def log_in(registry: Registry, operator: Operator, request: Request, after: str) -> Response:
    """Open a session and go to the page `after`."""
    response = RedirectResponse(after, 303)
    response.set_cookie(
        COOKIE,
        registry.open_session(operator),
        max_age=_SESSION_SECONDS,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


def log_out(registry: Registry, request: Request) -> Response:
    """Close the session and go to the login."""
    secret = request.cookies.get(COOKIE)
    if secret:
        registry.close_session(secret)
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def ask_to_log_in(request: Request) -> Response:
    """Go to the login, and from there back to the page that was asked for."""
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse("/login" if wanted == "/" else f"/login?next={quote(wanted)}", 303)


def page_after_login(wanted: str) -> str:
    """Return a page of this server: the wanted one, or the overview instead of another site's.

    >>> page_after_login("/devices?state=failed"), page_after_login("//elsewhere.example")
    ('/devices?state=failed', '/')
    """
    is_ours = wanted.startswith("/") and not wanted.startswith("//")
    return wanted if is_ours and wanted.isprintable() and "\\" not in wanted else "/"
