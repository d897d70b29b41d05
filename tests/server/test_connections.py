"""Who opens connections and sends nothing, or little, keeps nobody else from being answered."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from web_server import running

from server import connections
from server.connections import MOST_HEADER, Connection

CHUNK = b"x" * 8


async def app(scope: dict[str, object], receive: object, send: object) -> None:
    """Answer with the length of the body, when it is whole."""
    length, more = 0, True
    while more:
        message = await receive()  # type: ignore[operator]
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(length).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": body})  # type: ignore[operator]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server of little patience."""
    monkeypatch.setattr(connections, "HEADER_S", 0.5)
    monkeypatch.setattr(connections, "BODY_S", 0.5)
    monkeypatch.setattr(connections, "LEAST_BYTES", 64)
    with running(app, http=Connection, ws="none", lifespan="off", timeout_keep_alive=60) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


def is_cut_off(connection: socket.socket) -> bool:
    """Say whether the server closes the connection; it has ten times as long as it should take."""
    connection.settimeout(5)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nonly this",
    ],
    ids=["nothing", "half a header", "half a body"],
)
def test_who_does_not_go_on_is_cut_off(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(sent[: len(sent) // 2])
        connection.sendall(sent[len(sent) // 2 :])
        assert is_cut_off(connection)


@pytest.mark.parametrize("sent", [b"\r\n", b"GET /"], ids=["an empty line", "half a request"])
def test_who_has_had_an_answer_is_cut_off_as_well(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(sent)
        assert is_cut_off(connection)


def test_who_drips_is_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(60):
                connection.sendall(b"x")
                time.sleep(0.1)


def test_a_slow_upload_that_goes_on_is_taken(address: tuple[str, int]) -> None:
    def slowly() -> Iterator[bytes]:
        for _ in range(12):
            yield CHUNK * 16
            time.sleep(0.1)

    url = f"http://{address[0]}:{address[1]}/"
    assert httpx.put(url, content=slowly()).text == str(12 * 16 * len(CHUNK))


def test_a_kept_connection_serves_again_and_again(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}") as client:
        for wait in (0, 0.7, 0):
            time.sleep(wait)
            assert client.put("/", content=b"abc").text == "3"


def test_too_many_are_refused_and_room_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_S", 1)
    limits = {"limit_concurrency": 8, "ws": "none", "lifespan": "off"}
    with running(app, http=Connection, **limits) as url, contextlib.ExitStack() as stack:
        place = "127.0.0.1", int(url.rpartition(":")[2])
        idle = [stack.enter_context(socket.create_connection(place)) for _ in range(20)]
        assert httpx.get(url).status_code == 503
        assert all(map(is_cut_off, idle))
        assert httpx.get(url).status_code == 200


# Long headers


@pytest.mark.parametrize("used", [False, True], ids=["first request", "after an answer"])
def test_a_header_without_end_is_refused(address: tuple[str, int], used: bool) -> None:
    before = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" if used else b""
    header = b"GET / HTTP/1.1\r\nX-A: " + b"a" * MOST_HEADER
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(before)
        if used:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(header[: MOST_HEADER + 1])
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'{"error": "the header is longer than 65536 bytes."}' in answer


@pytest.mark.parametrize("body", [b"", b"\r\n0\r\n"], ids=["before a body", "after it"])
def test_many_fields_are_not_collected(address: tuple[str, int], body: bytes) -> None:
    start = b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + body
    fields = (b"X: " + b"a" * 1000 + b"\r\n") * 1000
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(start)
        with pytest.raises(ConnectionError):
            for _ in range(40):
                connection.sendall(fields)


def test_nobody_gets_a_refusal_in_the_midst_of_an_answer(address: tuple[str, int]) -> None:
    start = b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(start)
        connection.sendall(b"X: " + b"a" * MOST_HEADER)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(4096) == b""


def test_a_body_in_many_small_parts_is_taken(address: tuple[str, int]) -> None:
    count = MOST_HEADER // 4  # of parts with 5 bytes round each
    parts = (b"x" for _ in range(count))
    assert httpx.put(f"http://{address[0]}:{address[1]}/", content=parts).text == str(count)


# Answers that nobody reads


class Answering:
    """An app that gives a long answer, and a connection that tells its end."""

    def __init__(self, parts: int, part: int) -> None:
        self.parts, self.part = parts, b"x" * part
        self.ended = threading.Event()
        ended = self.ended

        class Told(Connection):
            def connection_lost(self, exc: Exception | None) -> None:
                ended.set()
                super().connection_lost(exc)

        class NeverPaused(Told):
            """The system of a client takes all but what it takes to pause an answer."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                transport.set_write_buffer_limits(high=1 << 30)

        self.told, self.never_paused = Told, NeverPaused

    async def __call__(self, _: dict[str, object], __: Any, send: Any) -> None:
        """Answer."""
        headers = [(b"content-length", str(self.parts * len(self.part)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for left in reversed(range(self.parts)):
            body = {"type": "http.response.body", "body": self.part, "more_body": left > 0}
            await send(body)


@contextlib.contextmanager
def asked(
    app: Answering, protocol: type[Connection], ends: bool = False
) -> Iterator[socket.socket]:
    """Ask for the answer on a connection whose system takes little of it."""
    options = {"ws": "none", "lifespan": "off", "timeout_keep_alive": 1}
    with running(app, http=protocol, **options) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        more = b"Connection: close\r\n" if ends else b""
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
        yield connection


def test_who_does_not_read_his_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 0.5)
    app = Answering(64, 1 << 20)
    with asked(app, app.told):
        assert app.ended.wait(5)


@pytest.mark.parametrize("ends", [True, False], ids=["last answer", "idle after the answer"])
def test_an_answer_that_is_whole_waits_no_longer(
    monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 0.5)
    app = Answering(1, 8 << 20)
    with asked(app, app.never_paused, ends):
        assert app.ended.wait(5)


def test_who_reads_slowly_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 0.5)
    monkeypatch.setattr(connections, "LEAST_TAKEN", 1 << 10)
    app = Answering(1, 4 << 20)
    with asked(app, app.told, ends=True) as connection:
        length, start = 0, time.monotonic()
        while data := connection.recv(64 << 10):
            length += len(data)
            if time.monotonic() < start + 1.5:
                time.sleep(0.02)
    assert length > 4 << 20
