"""However slowly a server sends or takes, a connection to it ends in bounded time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import urllib3
from tuf.api.exceptions import DownloadHTTPError

from fedspk import connection
from fedspk.connection import Connection, VersionsUnreachable

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def speaking(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Serve on loopback: whoever connects gets what `answer` does with the connection."""

    def speak(to: socket.socket) -> None:
        with to, suppress(OSError):
            answer(to)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=speak, args=(listening.accept()[0],), daemon=True).start()

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


@contextmanager
def dripping(start: bytes) -> Iterator[str]:
    """Serve `start`, and then a letter every now and then."""
    stop = threading.Event()

    def drip(to: socket.socket) -> None:
        to.recv(65_536)
        to.sendall(start)
        while not stop.wait(0.05):
            to.sendall(b"a")

    with speaking(drip) as address:
        yield address
        stop.set()


def get(address: str) -> None:
    Connection(address).download_bytes(f"{address}/x", 100_000)


def send(address: str) -> None:
    Connection(address).send("PUT", f"{address}/x", b"{}", {})


def given_up(ask: Callable[[str], None], address: str) -> str:
    """Return why a request is given up; it is a fault if it is not within seconds."""
    said: list[str] = []

    def asked() -> None:
        with pytest.raises(VersionsUnreachable) as error:
            ask(address)
        said.append(str(error.value))

    thread = threading.Thread(target=asked, daemon=True)
    thread.start()
    thread.join(10)
    assert said
    return said[0]


@pytest.mark.parametrize("ask", [get, send])
def test_a_server_that_drips_headers_is_given_up(
    ask: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_ANSWER_S", 0.3)
    with dripping(b"HTTP/1.1 200 OK\r\nX: ") as address:
        assert "does not answer in time" in given_up(ask, address)


@pytest.mark.parametrize("ask", [get, send])
@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        CHUNKED + b"5;",
        CHUNKED + b"0\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x08\0\0\0\0\0\3",
    ],
    ids=["body", "body without end", "size of a chunk", "trailer", "compressed"],
)
def test_a_server_that_drips_its_answer_is_given_up(
    start: bytes, ask: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_WINDOW_S", 0.3)
    with dripping(start) as address:
        assert "too slowly" in given_up(ask, address)


def test_an_answer_that_says_when_to_come_again_is_not_read_to_its_end() -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 9999\r\n\r\n"
    with dripping(busy) as address, pytest.raises(DownloadHTTPError, match="503"):
        get(address)


def taking(most: int, pause_s: float) -> Callable[[socket.socket], None]:
    """Return who takes `most` bytes, 64 KiB at a time and no faster, and then answers."""
    stop = threading.Event()

    def take(to: socket.socket) -> None:
        came = 0
        while came < most and (part := to.recv(65_536)):
            came += len(part)
            stop.wait(pause_s)
        to.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")

    return take


def test_a_large_upload_may_take_longer_than_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_TIMEOUT", urllib3.Timeout(connect=0.5, read=10.0))
    body = bytes(16_000_000)
    with speaking(taking(len(body), 0.006)) as address:
        assert Connection(address).send("PUT", f"{address}/x", body, {}) == (201, b"{}")


def test_a_server_that_takes_no_upload_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_TIMEOUT", urllib3.Timeout(connect=0.3, read=10.0))
    stop = threading.Event()
    with (
        speaking(lambda _: stop.wait(5.0)) as address,
        pytest.raises(VersionsUnreachable, match="takes too long"),
    ):
        Connection(address).send("PUT", f"{address}/x", bytes(16_000_000), {})
    stop.set()
