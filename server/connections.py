"""Connections that nobody holds for nothing: uvicorn by itself waits for a request for ever.

A request's header must be whole within `HEADER_S`; of its body at least `LEAST_BYTES`, or the
rest, must come in every `BODY_S`; of an answer at least `LEAST_TAKEN`, or what waits, must go out
in every `ANSWER_S`. Who is slower is cut off. A header of more than `MOST_HEADER` is answered 431;
who sends as much after a body is cut off. Between requests uvicorn closes an idle connection
itself. Of more connections than the process may have open, the last ones are answered 503
(`uvicorn.Config.limit_concurrency`), so that files can still be opened for the others.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_S = 10.0
BODY_S = 20.0
LEAST_BYTES = 16 << 10
"""A device's whole request is shorter; a model file at this pace would take a day."""
ANSWER_S = 60.0
LEAST_TAKEN = 128 << 10
"""Bytes of a long answer; a device that was cut off goes on where its file stopped."""
MOST_HEADER = 64 << 10
"""Bytes, to within what is read at once."""

_UNSENT = 128 << 10  # bytes that wait in the system: enough to keep a line busy
_MOST_FILES = 65_536
_FILES_BESIDE = 256  # that all threads and the database may have open


class Connection(HttpToolsProtocol):
    """uvicorn's connection with a limit to its patience."""

    _timer: asyncio.TimerHandle | None = None
    _received = 0
    _outside_bodies = 0  # bytes since the last ones of a body, or since the last request
    _reader_timer: asyncio.TimerHandle | None = None
    _untaken = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request; cut off whom there is not even room to refuse."""
        super().connection_made(transport)
        # Else the system takes megabytes at once, and then nothing for as long as they take.
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT
        )
        most = self.limit_concurrency
        if most is not None and len(self.connections) > most + _FILES_BESIDE // 2:
            transport.abort()
        else:
            self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first ones after an answer are a request's, which must go on."""
        if self.transport.is_closing():  # under TLS more may come
            return
        self._outside_bodies += len(data)
        super().data_received(data)
        if self._outside_bodies > MOST_HEADER:
            self._refuse_header()
        if self.transport.is_closing():
            self._wait_for_reader()
        elif self._timer is None and not self._is_answering():
            self._wait_for_header()

    def on_headers_complete(self) -> None:
        """Start to answer, and wait for the body."""
        super().on_headers_complete()
        self._stop_waiting()
        self._wait_for_body()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._received += len(body)
        self._outside_bodies = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait no more."""
        self._stop_waiting()
        self._outside_bodies = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait until an answer that ends the connection has gone out."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait_for_reader()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, once all answers have gone out."""
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def pause_writing(self) -> None:
        """Wait until an answer is read."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Wait no more, unless what is left is the end of the connection."""
        super().resume_writing()
        if self.transport.is_closing():
            self._wait_for_reader()
        else:
            self._stop_waiting_for_reader()

    def _refuse_header(self) -> None:
        if self._is_answering():
            self.transport.abort()
            return
        body = json.dumps({"error": f"the header is longer than {MOST_HEADER} bytes."}).encode()
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

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

    def _wait_for_reader(self) -> None:
        self._stop_waiting_for_reader()
        self._untaken = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(ANSWER_S, self._judge_reader)

    def _judge_reader(self) -> None:
        if self._untaken - self.transport.get_write_buffer_size() >= LEAST_TAKEN:
            self._wait_for_reader()
        else:
            self.transport.abort()

    def _stop_waiting_for_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None


def most_connections() -> int:
    """Allow this process as many open files as the system lets it; return how many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(most - _FILES_BESIDE, most // 2)
