"""Who opens connections and sends nothing, or little, keeps nobody else from being answered."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from web_server import running

from server import connections
from server.connections import Connection

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
