"""A program that asks a running device over its socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clients.socket_server import UnixConnection


def asked(
    path: Path, method: str, url: str, body: bytes | None = None, *, seconds: float = 20.0
) -> tuple[int, Any]:
    """Send one request and return status and JSON."""
    connection = UnixConnection(path, seconds)
    try:
        connection.request(method, url, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
