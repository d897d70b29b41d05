"""Connections that nobody holds for nothing: uvicorn by itself waits for a request for ever.

A request's header must be whole within `HEADER_S`; of its body at least `LEAST_BYTES`, or the
rest, must come in every `BODY_S`. Who is slower is cut off. Between requests uvicorn closes an idle
connection itself. Of more connections than the process may have open, the last ones are answered
503 (`uvicorn.Config.limit_concurrency`), so that files can still be opened for the others.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_S = 10.0
BODY_S = 20.0
LEAST_BYTES = 16 << 10
"""A device's whole request is shorter; a model file at this pace would take a day."""

_MOST_FILES = 65_536
_FILES_BESIDE = 256  # that all threads and the database may have open


class Connection(HttpToolsProtocol):
    """uvicorn's connection with a limit to its patience."""

    _timer: asyncio.TimerHandle | None = None
    _received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request; cut off whom there is not even room to refuse."""
        super().connection_made(transport)
        most = self.limit_concurrency
        if most is not None and len(self.connections) > most + _FILES_BESIDE // 2:
            transport.abort()
        else:
            self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first ones after an answer are a request's, which must go on."""
        super().data_received(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self._timer is None and not is_answering and not self.transport.is_closing():
            self._wait_for_header()

    def on_headers_complete(self) -> None:
        """Start to answer, and wait for the body."""
        super().on_headers_complete()
        self._stop_waiting()
        self._wait_for_body()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().on_message_complete()

    def _wait_for_header(self) -> None:
        self._timer = self.loop.call_later(HEADER_S, self.transport.abort)

    def _wait_for_body(self) -> None:
        self._received = 0
        self._timer = self.loop.call_later(BODY_S, self._judge_body)

    def _judge_body(self) -> None:
        if self._received >= LEAST_BYTES or self.flow.read_paused:  # a slow disk is our fault
            self._wait_for_body()
        else:
            self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def most_connections() -> int:
    """Allow this process as many open files as the system lets it; return how many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(most - _FILES_BESIDE, most // 2)
