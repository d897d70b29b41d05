"""The part of a main server that hears devices: registrations and reports, signatures checked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fedspk.api import API, Registration, Report, SignedRequest


@dataclass
class SmallServer:
    """What a server has heard, and how it answers.

    Args:
        tokens: that are good for one device.
        answers: bodies and statuses to give instead of the right ones, first come first served; an
            empty body closes the connection after the message was taken.
    """

    tokens: set[str] = field(default_factory=set)
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    keys: dict[str, bytes] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    address: str = ""

    def take(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, str]:
        """Take a message and return status and error."""
        signed = SignedRequest.from_header(authorization)
        if signed is None:
            return 401, "no signature."
        if (method, path) == ("POST", f"{API}/devices"):
            return self._register(signed, path, body)
        if (method, path) == ("PUT", f"{API}/devices/{signed.device}/report"):
            return self._hear(signed, path, body)
        return 404, "no such path."

    def _register(self, signed: SignedRequest, path: str, body: bytes) -> tuple[int, str]:
        registration = Registration.from_json(body)
        key = bytes.fromhex(registration.public_key)
        if not signed.verifies(key, "POST", path, body):
            return 401, "the signature is wrong."
        owner = self.used.get(registration.token, signed.device)
        if registration.token not in self.tokens or owner != signed.device:
            return 403, "the token is not known, or was used."
        self.used[registration.token] = signed.device
        self.keys[signed.device] = key
        return 201, ""

    def _hear(self, signed: SignedRequest, path: str, body: bytes) -> tuple[int, str]:
        if not signed.verifies(self.keys.get(signed.device, bytes(32)), "PUT", path, body):
            return 401, "the signature is wrong."
        if self.times and signed.time_ms <= self.times[-1]:
            return 401, "the time was used."
        self.times.append(signed.time_ms)
        self.reports.append(Report.from_json(body))
        return 204, ""


@contextmanager
def small_server(*tokens: str) -> Iterator[SmallServer]:
    """Serve on loopback until the block ends."""
    server = SmallServer(set(tokens))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            header = self.headers.get("Authorization", "")
            status, error = server.take(self.command, self.path, body, header)
            content = json.dumps({"error": error}).encode() if error else b""
            if server.answers:
                status, content = server.answers.pop(0)
                if not content:
                    self.close_connection = True
                    return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        server.address = f"http://127.0.0.1:{http.server_port}"
        yield server
        http.shutdown()
        thread.join()
