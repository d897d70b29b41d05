"""Templates into pages, with the headers that keep them private and free of foreign content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jinja2
from fastapi.responses import HTMLResponse, Response

from fedspk.templates import template_environment
from server.page import words

_FOLDER = Path(__file__).parent

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_STYLE = (_FOLDER / "page.css").read_bytes()
_TAG = hashlib.sha256(_STYLE).hexdigest()[:16]


def _environment() -> jinja2.Environment:
    environment = template_environment(_FOLDER)
    environment.filters |= {
        "number": words.show_number,
        "signed": words.show_signed,
        "share": words.show_share,
        "value": words.show_value,
        "bytes": words.show_bytes,
        "day": words.show_day,
        "minute": words.show_time,
        "span": words.show_span,
        "count_of": words.count_of,
    }
    environment.globals["style"] = f"/page.css?{_TAG}"
    return environment


_ENVIRONMENT = _environment()


def show(template: str, status: int = 200, **values: Any) -> Response:
    """Return a page made from `<template>.html.jinja`."""
    text = _ENVIRONMENT.get_template(f"{template}.html.jinja").render(**values)
    return HTMLResponse(text, status, HEADERS)


def stylesheet() -> Response:
    """Return the pages' stylesheet, which caches may keep: its address names its content."""
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(_STYLE, media_type="text/css", headers={**HEADERS, **kept})
