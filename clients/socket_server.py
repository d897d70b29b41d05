"""Programs of the same machine ask the device: HTTP/1.1 with JSON over a unix domain socket.

    POST /verify?user=anna&false_accept=0.01      body: a WAV or FLAC file
    POST /identify?false_accept=0.01              body: a WAV or FLAC file
    GET  /status
    GET  /healthz

The socket's file lets its owner alone in (mode 0600). Every answer is a JSON object, an error's is
{"error": one sentence}; then the connection is closed. Nothing is logged.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import socketserver
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from fedspk.errors import FedspkError

MOST_BYTES = 10_000_000
"""How long a body may be."""

_CONNECTIONS = 32  # served at a time; more wait in the socket's queue
_WAITING = 256
_SILENCE_S = 10.0  # a program that sends or takes nothing for so long is left
_LONGEST_S = 15.0  # what a request has not brought by then it need not bring any more
_TICK_S = 0.1
_LONGEST_PATH = 107  # bytes that a unix socket's address can hold
_GRACE_S = 5.0  # for the answers under way when the service ends

_LENGTH = re.compile("[0-9]{1,15}")

_LOG = logging.getLogger(__name__)

Answer: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a program asks: the query's fields and the body."""

    fields: Mapping[str, str]
    body: bytes


class RequestError(FedspkError):
    """A request that gets an error for an answer, under an HTTP status."""

    def __init__(self, message: str, status: HTTPStatus) -> None:
        super().__init__(message)
        self.status = status


Routes: TypeAlias = Mapping[tuple[Literal["GET", "POST"], str], Callable[[Request], Answer]]


class UnixConnection(HTTPConnection):
    """A program's connection to the device: `http.client`, over a socket's file."""

    def __init__(self, path: Path, timeout: float | None = None) -> None:
        super().__init__("device", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def serving(path: Path, routes: Routes) -> Iterator[threading.Thread]:
    """Answer requests at a socket until the block ends; what is under way then is finished.

    Args:
        path: the socket's file; `path` with ".lock" shows who serves it.
        routes: method and path -> the function that answers; several run at a time.

    Yields:
        The thread that takes the requests: it lives as long as it serves.

    Raises:
        FedspkError: another process serves there, or the path is too long or cannot be used, or is
            that of another file.
    """
    path = Path(path)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise FedspkError(
            f"{path}: is too long for a socket ({_LONGEST_PATH} bytes at most); give --socket a "
            "shorter one."
        )
    with _alone(path.with_name(f"{path.name}.lock"), path):
        _remove_socket(path)
        server = _Server(path, routes)
        thread = threading.Thread(target=server.serve_forever, args=(_TICK_S,), name="socket")
        try:
            thread.start()
            yield thread
        finally:
            server.is_ending = True
            server.shutdown()
            thread.join()
            server.drain()
            server.server_close()
            _remove_socket(path)


def _remove_socket(path: Path) -> None:
    """Delete a socket's file, if there is one; nothing else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FedspkError(f"{path}: is no socket; give --socket the name of a new file.")
    path.unlink()


@contextmanager
def _alone(lock: Path, path: Path) -> Iterator[None]:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FedspkError(f"{path}: cannot be made ({error.strerror}).") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FedspkError(f"{path}: a `fedspk device run` serves there already.") from error
    else:
        yield
    finally:
        os.close(descriptor)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Threads that answer, a bounded number of them."""

    daemon_threads = True
    request_queue_size = _WAITING

    def __init__(self, path: Path, routes: Routes) -> None:
        self.routes = routes
        self.is_ending = False
        self._deadlines: dict[socket.socket, float] = {}
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        before = os.umask(0o177)
        try:
            super().__init__(str(path), _Handler)
        except OSError as error:
            raise FedspkError(f"{path}: cannot be made ({error.strerror}).") from error
        finally:
            os.umask(before)

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._free.acquire(timeout=_TICK_S):
            self.service_actions()
            if self.is_ending:
                self.shutdown_request(request)
                return
        self._deadlines[request] = time.monotonic() + _LONGEST_S
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def service_actions(self) -> None:
        """Let no request come for ever; called every now and then."""
        now = time.monotonic()
        for request, deadline in list(self._deadlines.items()):
            if deadline < now:
                self._deadlines.pop(request, None)
                with suppress(OSError):  # the program has gone
                    request.shutdown(socket.SHUT_RD)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the program has gone."""

    def drain(self) -> None:
        """Wait for the answers under way."""
        for _ in range(_CONNECTIONS):
            self._free.acquire(timeout=_GRACE_S / _CONNECTIONS)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "fedspk"
    sys_version = ""
    timeout = _SILENCE_S

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: Literal["GET", "POST"]) -> None:
        # The socket's own errors are not caught here: the program has gone.
        try:
            status, answer = _outcome(self._asked(method))
        except RequestError as error:
            status, answer = error.status, {"error": str(error)}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _asked(self, method: Literal["GET", "POST"]) -> Callable[[], Answer]:
        """Read a request and return what answers it."""
        # Read before anything is judged: a program that still sends would not hear the answer.
        body = self._body() if method == "POST" else b""
        try:
            url = urlsplit(self.path)
        except ValueError:
            raise RequestError("the address is none.", HTTPStatus.BAD_REQUEST) from None
        act = self.server.routes.get((method, url.path))
        if act is None:
            known = ", ".join(" ".join(each) for each in self.server.routes)
            raise RequestError(
                f"there is no such request; there are {known}.", HTTPStatus.NOT_FOUND
            )
        pairs = parse_qsl(url.query, keep_blank_values=True)
        if len(dict(pairs)) < len(pairs):
            raise RequestError("a field of the query stands twice.", HTTPStatus.BAD_REQUEST)
        return partial(act, Request(dict(pairs), body))

    def _body(self) -> bytes:
        stated = self.headers.get("Content-Length", "")
        if not _LENGTH.fullmatch(stated) or "Transfer-Encoding" in self.headers:
            raise RequestError("give the body's Content-Length.", HTTPStatus.LENGTH_REQUIRED)
        if int(stated) > MOST_BYTES:
            self._discard(int(stated))
            raise RequestError(
                f"the body is longer than {MOST_BYTES} bytes; send less of it.",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        body = self.rfile.read(int(stated))
        if len(body) < int(stated):
            raise RequestError("the body ended early.", HTTPStatus.BAD_REQUEST)
        return body

    def _discard(self, length: int) -> None:
        left = min(length, 10 * MOST_BYTES)
        while left > 0 and (part := self.rfile.read(min(left, 65_536))):
            left -= len(part)

    def send_error(self, code: int, message: str | None = None, _: str | None = None) -> None:
        """Answer a request that is no HTTP, or of another method."""
        content = json.dumps({"error": f"{message or HTTPStatus(code).phrase}."}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: requests name users."""


def _outcome(act: Callable[[], Answer]) -> tuple[HTTPStatus, Answer]:
    """Return what answers a request, whatever goes wrong."""
    try:
        return HTTPStatus.OK, act()
    except RequestError as error:
        return error.status, {"error": str(error)}
    except FedspkError as error:
        return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}
    except Exception as error:  # ONNX Runtime's own kinds of error have no common base
        _LOG.exception("A request met a fault.")
        fault = f"the device has a fault ({type(error).__name__}); see its log."
        return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": fault}
