"""A server of static files that honours ranges and tags, and that tests can bend out of shape."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    """What is about to be sent; tests change it.

    `drip` sends one byte at a time, so many seconds apart; `cut` closes the connection after so
    many bytes of the body.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None
    drip: float | None = None


Bend = Callable[[str, Answer], None]
"""Gets the path of a request and the answer to it."""


@dataclass
class BentServer:
    """Files of `folder`, bent by `bend`; `requests` are paths with headers, `sent` body bytes."""

    folder: Path
    address: str = ""
    bend: Bend = lambda *_: None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0

    def paths(self) -> list[str]:
        """Return the paths asked for, in order."""
        return [path for path, _ in self.requests]

    def answer(self, path: str, headers: dict[str, str]) -> Answer:
        """Return what a well-behaved server says."""
        self.requests.append((path, headers))
        file = self.folder / path.lstrip("/")
        if not file.is_file():
            return Answer(404, {}, b"")
        content = file.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        start = headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if start and headers.get("If-Range", tag) == tag:
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return Answer(206, {"ETag": tag, "Content-Range": place}, content[int(start) :])
        return Answer(200, {"ETag": tag}, content)


@contextmanager
def bent(folder: Path, certificate: Path | None = None) -> Iterator[BentServer]:
    """Serve a folder on loopback; over TLS with a file of certificate and key."""
    served = BentServer(folder)
    handler = type("Handler", (_Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https" if certificate else "http"
        served.address = f"{scheme}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield served
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: BentServer

    def handle(self) -> None:
        with suppress(ConnectionError):  # devices are killed, and tests close what they opened
            super().handle()

    def do_GET(self) -> None:
        answer = self.served.answer(self.path, dict(self.headers.items()))
        answer.headers |= {"Content-Length": str(len(answer.body)), "Date": self.date_time_string()}
        self.served.bend(self.path, answer)
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self._send(answer)
        except OSError:
            self.close_connection = True

    def _send(self, answer: Answer) -> None:
        body = answer.body[: answer.cut]
        step = 1 if answer.drip else 64 * 1024
        for start in range(0, len(body), step):
            if answer.drip:
                threading.Event().wait(answer.drip)
            self.served.sent += self.wfile.write(body[start : start + step])
        if answer.cut is not None or "Content-Length" not in answer.headers:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
