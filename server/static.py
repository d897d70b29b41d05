"""The files that devices fetch, served so that caches can stand before the server.

| path                                  | ETag                    | Cache-Control               |
|---------------------------------------|-------------------------|-----------------------------|
| `/targets/.../<sha256>.<name>`        | the SHA-256 in the name | a year, immutable           |
| `/metadata/<version>.<role>.json`     | SHA-256 of the content  | a year, immutable           |
| `/metadata/timestamp.json`            | SHA-256 of the content  | no-cache: ask each time     |
| what is not there, as the next root   |                         | `SECONDS_ABSENT`            |

Only names of a release are answered, and of the metadata only what the timestamp names: what a
killed change left behind is written again under the same name, and a cache would keep the first.
Single ranges are answered (RFC 9110, section 14), so that a broken download goes on where it
stopped. Files are read in blocks, so a model is never whole in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from fedspk.errors import FedspkError
from fedspk.proposals import RELEASE
from server.artefacts import Artefacts, hash_in
from server.faults import UnavailableError

if TYPE_CHECKING:
    from server.service import Service

SECONDS_ABSENT = 5
"""How long a cache may believe that a file is not there: devices find a new root within that."""

_IMMUTABLE = "public, max-age=31536000, immutable, no-transform"
_FRESH = "public, no-cache, no-transform"
_ABSENT = f"public, max-age={SECONDS_ABSENT}"
_BLOCK = 256 * 1024  # bytes

_METADATA = re.compile(
    rf"(?:([1-9][0-9]{{0,8}})\.({Root.type}|{Targets.type}|{RELEASE}|{Snapshot.type})"
    rf"|{Timestamp.type})\.json"
)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True)
class _File:
    """What is served: `read(start, end)` returns bytes of it."""

    etag: str
    length: int
    read: Callable[[int, int], bytes]
    media_type: str
    cache: str


def static_routes(service: Service) -> APIRouter:
    """Return the routes `/metadata/...` and `/targets/...`, for GET and HEAD."""
    metadata = _Metadata(service.repository.metadata)
    artefacts = service.repository.artefacts

    def metadata_file(request: Request) -> Response:
        return _respond(request, metadata.find(request.path_params["name"]))

    def target_file(request: Request) -> Response:
        try:
            return _respond(request, _find_target(artefacts, request.path_params["name"]))
        except FedspkError as error:
            raise UnavailableError(str(error)) from error

    router = APIRouter()
    router.add_route("/metadata/{name:path}", metadata_file, ["GET"], include_in_schema=False)
    router.add_route("/targets/{name:path}", target_file, ["GET"], include_in_schema=False)
    return router


class _Metadata:
    """The metadata files in a repository's folder that its present timestamp names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._named: tuple[tuple[int, int], dict[str, int]] = (0, 0), {}

    def find(self, name: str) -> _File | None:
        match = _METADATA.fullmatch(name)
        if match is None:
            return None
        version, role = match.groups()
        try:
            if role not in (None, Root.type) and int(version) > self._latest().get(role, 0):
                return None
            content = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise UnavailableError(f"{name}: cannot be read ({error}).") from error
        etag = hashlib.sha256(content).hexdigest()
        cache = _IMMUTABLE if version else _FRESH
        return _File(etag, len(content), partial(_part, content), "application/json", cache)

    def _latest(self) -> dict[str, int]:
        """Return the versions by role; read anew when the timestamp has been replaced."""
        path = self._folder / f"{Timestamp.type}.json"
        found = path.stat()
        key = found.st_ino, found.st_mtime_ns
        if key != self._named[0]:
            versions = self._listed(path)
            versions |= self._listed(self._folder / f"{versions[Snapshot.type]}.snapshot.json")
            self._named = key, versions
        return self._named[1]

    def _listed(self, path: Path) -> dict[str, int]:
        meta = json.loads(path.read_bytes())["signed"]["meta"]
        return {name.removesuffix(".json"): each["version"] for name, each in meta.items()}


def _find_target(artefacts: Artefacts, name: str) -> _File | None:
    etag = hash_in(name)
    if etag is None:
        return None
    length = artefacts.size(name)
    if length is None:
        return None
    media_type = "application/json" if name.endswith(".json") else "application/octet-stream"
    return _File(etag, length, partial(artefacts.read, name), media_type, _IMMUTABLE)


def _respond(request: Request, file: _File | None) -> Response:
    if file is None:
        absent = {"Cache-Control": _ABSENT}
        return JSONResponse({"error": "there is no such file."}, 404, absent)
    etag = f'"{file.etag}"'
    headers = {"ETag": etag, "Cache-Control": file.cache, "Accept-Ranges": "bytes"}
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(None, 304, headers)
    part = _wanted(request, etag, file.length)
    if part is None:
        start, end, status = 0, file.length, 200
    else:
        start, end, status = part.start, part.stop, 206
        if not part:
            length = {"Content-Range": f"bytes */{file.length}", "Cache-Control": "no-store"}
            return JSONResponse({"error": "the file is shorter than that."}, 416, length)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.length}"
    if end - start <= _BLOCK:
        return Response(file.read(start, end), status, headers, file.media_type)
    headers["Content-Length"] = str(end - start)
    blocks = _blocks(file, start, 0 if request.method == "HEAD" else end)
    return StreamingResponse(blocks, status, headers, file.media_type)


def _matches(header: str, etag: str) -> bool:
    """Say whether `If-None-Match` names the file (compared weakly, as it must be)."""
    stated = {each.strip().removeprefix("W/") for each in header.split(",")}
    return etag in stated or stated == {"*"}


def _wanted(request: Request, etag: str, length: int) -> range | None:
    """Return which bytes are asked for, an empty range if there are none; None for the file."""
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.method != "GET" or match.groups() == ("", ""):
        return None
    if request.headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, length - int(last)), length)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, length) if last else length)


async def _blocks(file: _File, start: int, end: int) -> AsyncIterator[bytes]:
    for at in range(start, end, _BLOCK):
        block = await run_in_threadpool(file.read, at, min(at + _BLOCK, end))
        yield block


def _part(content: bytes, start: int, end: int) -> bytes:
    return content[start:end]
