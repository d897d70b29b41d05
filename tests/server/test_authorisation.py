"""Who may do what: every route of the API, by role, without a token, with a wrong one."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from main_server import SigningDevice, bearer, serving
from starlette.routing import Route
from web_server import running

from fedspk.api import API
from server.routes import ROUTERS
from server.service import Service, build_app

READERS = {"viewer", "operator"}
RELEASERS = {"operator", "aggregator"}
ALLOWED = {
    ("GET", "/versions"): READERS,
    ("GET", "/versions/{kind}/{version}"): READERS,
    ("GET", "/versions/{a}/compare/{b}"): READERS,
    ("GET", "/channels"): READERS,
    ("GET", "/audit"): READERS,
    ("GET", "/devices"): READERS,
    ("GET", "/devices/{device}"): READERS,
    ("GET", "/fleet"): READERS,
    ("GET", "/register"): READERS | RELEASERS,
    ("POST", "/invitations"): {"operator"},
    ("DELETE", "/devices/{device}"): {"operator"},
    ("PUT", "/uploads/{sha256}"): RELEASERS,
    ("POST", "/versions"): {"operator"},
    ("POST", "/promotions"): {"operator"},
    ("POST", "/rollbacks"): {"operator"},
    ("POST", "/proposals"): RELEASERS,
}
BY_SIGNATURE = {("POST", "/devices"), ("PUT", "/devices/{device}/report")}
VALUES = {"kind": "model", "version": "1", "a": "1", "b": "1", "device": "0" * 32}
BODIES = {
    "/invitations": {"name": "kitchen"},
    "/versions": {"model": "0" * 64},
    "/promotions": {"version": 1, "channel": "stable"},
    "/rollbacks": {"to": 1},
    "/proposals": {"release": "{}"},
}


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with serving(service) as opened:
        yield opened


def request(client: httpx.Client, method: str, path: str, **headers: str) -> httpx.Response:
    """Send a right request but for who asks."""
    url = API + re.sub(r"\{(\w+)\}", lambda each: VALUES.get(each[1], "0" * 64), path)
    body = BODIES.get(path) if method == "POST" else None
    return client.request(method, url, json=body, headers=headers)


def test_every_route_is_in_the_table() -> None:
    known = {
        (method, route.path.removeprefix(API))
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, Route) and route.path.startswith(API)
        for method in route.methods or ()
    }
    assert known == {*ALLOWED, *BY_SIGNATURE}


def test_every_role_may_do_what_the_table_says_and_no_more(
    client: httpx.Client, service: Service
) -> None:
    for role in ("viewer", "operator", "aggregator"):
        token = service.registry.add_operator(role, role)
        for (method, path), allowed in ALLOWED.items():
            status = request(client, method, path, **bearer(token)).status_code
            if role in allowed:
                assert status not in (401, 403), (role, method, path, status)
            else:
                assert status == 403, (role, method, path, status)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer fedspk_wrong",
        "Basic YTpi",
        "Bearer " + "x" * 4000,
        "Fedspk-Device device=00, time=1, signature=00",
        "Bearer \x80",
    ],
)
def test_nobody_else_may_do_anything(client: httpx.Client, header: str) -> None:
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    for method, path in (*ALLOWED, *(BY_SIGNATURE - {("POST", "/devices")})):
        answer = request(client, method, path, **headers)  # type: ignore[arg-type]
        assert answer.status_code == 401, (method, path, answer.text)
        assert set(answer.json()) == {"error"}
        assert "Bearer" in answer.headers["WWW-Authenticate"]


def test_a_device_is_no_operator_and_an_operator_no_device(
    client: httpx.Client, service: Service
) -> None:
    device = SigningDevice(1)
    service.registry.register(device.registration(service.registry.invite("k").token), 1)
    assert device.send(client, "GET", "/versions", b"").status_code == 401
    token = service.registry.add_operator("ann", "operator")
    path = f"{API}/devices/{device.id}/report"
    assert client.put(path, json={}, headers=bearer(token)).status_code == 401


@contextmanager
def announced(
    client: httpx.Client, path: str, length: object, token: str
) -> Iterator[socket.socket]:
    """Announce a body and send none of it."""
    url = client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        head = [f"POST {API}{path} HTTP/1.1", "Host: x", f"Content-Length: {length}"]
        head += ["Content-Type: application/json", f"Authorization: {token}"]
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        yield connection


def answer_before_the_body(client: httpx.Client, path: str, length: object, token: str) -> str:
    """Announce a body, send none of it, and return the first line of the answer."""
    with announced(client, path, length, token) as connection:
        return connection.makefile().readline().strip()


@pytest.mark.parametrize("path", ["/proposals", "/devices", "/versions", "/nowhere"])
def test_of_a_strangers_long_body_nothing_is_read(client: httpx.Client, path: str) -> None:
    for header in ("", "Bearer fedspk_wrong", "Basic YTpi", "Bearer"):
        answer = answer_before_the_body(client, path, 1 << 20, header)
        assert answer == "HTTP/1.1 401 Unauthorized", header
    chunks = iter([b"[" * 9000] * 2)
    answer = client.post(API + path, content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code in (401, 404)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "of more than 8192 bytes needs an operator's token"),
        ("Basic YTpi", "of more than 8192 bytes needs an operator's token"),
        ("Bearer fedspk_wrong", "no operator has this token."),
    ],
)
def test_a_wrong_token_is_told_from_none(client: httpx.Client, header: str, words: str) -> None:
    with announced(client, "/proposals", 9000, header) as connection:
        assert words in connection.makefile().read()


def test_who_may_not_propose_need_not_send_the_proposal(
    client: httpx.Client, service: Service
) -> None:
    token = service.registry.add_operator("ann", "viewer")
    answer = answer_before_the_body(client, "/proposals", 8 << 20, f"Bearer {token}")
    assert answer == "HTTP/1.1 403 Forbidden"


@pytest.mark.parametrize("body", [b"", b"[" * (1 << 20), b"[[],[]]", b"\xff"])
def test_nonsense_is_no_proposal(client: httpx.Client, service: Service, body: bytes) -> None:
    token = service.registry.add_operator("ann", "operator")
    answer = client.post(f"{API}/proposals", content=body, headers=bearer(token))
    assert answer.status_code == 422
    assert "the message is wrong" in answer.json()["error"]


def test_no_cache_keeps_what_is_private_or_passing(client: httpx.Client, service: Service) -> None:
    token = service.registry.add_operator("ann", "viewer")
    for path in ("/healthz", f"{API}/fleet", f"{API}/nowhere"):
        assert client.get(path, headers=bearer(token)).headers["cache-control"] == "no-store"


def test_a_removed_operator_is_nobody(client: httpx.Client, service: Service) -> None:
    token = service.registry.add_operator("ann", "operator")
    assert request(client, "GET", "/versions", **bearer(token)).status_code == 200
    service.registry.remove_operator("ann")
    assert request(client, "GET", "/versions", **bearer(token)).status_code == 401


def test_health_is_for_everybody_and_metrics_are_not(
    client: httpx.Client, service: Service
) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/metrics").status_code == 401
    token = service.registry.add_operator("prometheus", "viewer")
    assert client.get("/metrics", headers=bearer(token)).status_code == 200


def test_no_token_and_no_query_is_logged(
    client: httpx.Client, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fedspk")
    token = service.registry.add_operator("ann", "operator")
    answer = client.post(
        f"{API}/invitations?note=private", json={"name": "kitchen"}, headers=bearer(token)
    )
    invited = answer.json()["token"]
    SigningDevice(1).register(client, invited)
    SigningDevice(2).register(client, invited)
    assert "status=403" in caplog.text
    assert "who=ann" in caplog.text
    for secret in (token, invited, "private"):
        assert secret not in caplog.text


def test_an_error_of_the_servers_own_tells_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("inner workings")

    monkeypatch.setattr(service.registry, "fleet", broken)
    token = service.registry.add_operator("ann", "viewer")
    with running(build_app(service)) as address:
        answer = httpx.get(f"{address}{API}/fleet", headers=bearer(token))
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed; its log says why."}
