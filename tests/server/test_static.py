"""Files for devices: validators, ranges and cache headers of RFC 9110 and 9111, and no others."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from version_repository import Device, keys_of, publish
from web_server import running

from server.creation import create
from server.registry import Registry
from server.repository import Repository
from server.service import Service, build_app
from server.settings import Settings
from server.static import SECONDS_ABSENT
from server.upkeep import rotate_root

YEAR = "public, max-age=31536000, immutable, no-transform"


def app(repository: Repository) -> FastAPI:
    registry = Registry.open(Settings.read(repository.folder).database)
    return build_app(Service(repository, registry, {}))


@pytest.fixture(scope="module", params=["folder", "memory"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models: list[Path]
) -> Iterator[Repository]:
    """A repository with one version, its target files in a folder or in another store."""
    folder = tmp_path_factory.mktemp("static") / "versions"
    create(folder)
    if request.param == "memory":
        (folder / "server.toml").write_text('artefacts = "memory://static"\n')
    made = Repository(folder)
    publish(made, models[0])
    yield made
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def client(shared: Repository) -> Iterator[httpx.Client]:
    with running(app(shared)) as address, httpx.Client(base_url=address) as made:
        yield made


@pytest.fixture(scope="module")
def content() -> bytes:
    """A model of several blocks."""
    return random.Random(1).randbytes(700_001)


@pytest.fixture(scope="module")
def model(shared: Repository, content: bytes) -> str:
    name = f"models/9/{hashlib.sha256(content).hexdigest()}.model.safetensors"
    shared.artefacts.write(name, content)
    return f"/targets/{name}"


def test_a_model_is_served_whole_and_for_a_year(
    client: httpx.Client, model: str, content: bytes
) -> None:
    answer = client.get(model)
    assert answer.status_code == 200
    assert answer.content == content
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert answer.headers["cache-control"] == YEAR
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("name", ["1.root.json", "1.targets.json", "1.release.json"])
def test_metadata_with_a_version_are_served_for_a_year(
    client: httpx.Client, shared: Repository, name: str
) -> None:
    content = (shared.metadata / name).read_bytes()
    answer = client.get(f"/metadata/{name}")
    assert answer.content == content
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert answer.headers["cache-control"] == YEAR
    assert answer.headers["content-type"] == "application/json"


def test_the_timestamp_is_asked_for_each_time(repository: Repository, models: list[Path]) -> None:
    with running(app(repository)) as address, httpx.Client(base_url=address) as client:
        first = client.get("/metadata/timestamp.json")
        assert first.headers["cache-control"] == "public, no-cache, no-transform"
        known = {"If-None-Match": first.headers["etag"]}
        assert client.get("/metadata/timestamp.json", headers=known).status_code == 304
        publish(repository, models[1])
        second = client.get("/metadata/timestamp.json", headers=known)
        assert second.status_code == 200
        assert json.loads(second.content)["signed"]["version"] == 3
        assert client.get("/metadata/2.release.json").status_code == 200


def test_a_missing_root_is_found_soon_after_it_came(repository: Repository) -> None:
    with running(app(repository)) as address, httpx.Client(base_url=address) as client:
        absent = client.get("/metadata/2.root.json")
        assert absent.status_code == 404
        assert absent.headers["cache-control"] == f"public, max-age={SECONDS_ABSENT}"
        assert set(absent.json()) == {"error"}
        rotate_root(repository, keys_of(repository), None)
        assert client.get("/metadata/2.root.json").status_code == 200


def test_metadata_that_no_timestamp_names_are_not_served(repository: Repository) -> None:
    """A killed change leaves them; the next one writes others under their names."""
    for name in ("3.snapshot.json", "2.release.json", "2.targets.json"):
        (repository.metadata / name).write_bytes(b"{}")
    with running(app(repository)) as address, httpx.Client(base_url=address) as client:
        for name in ("3.snapshot.json", "2.release.json", "2.targets.json"):
            assert client.get(f"/metadata/{name}").status_code == 404
        assert client.get("/metadata/2.snapshot.json").status_code == 200


@pytest.mark.parametrize(
    "stated", ['"{}"', 'W/"{}"', '"other", "{}"', "*", '"other",W/"{}" , "third"']
)
def test_what_a_cache_has_is_not_sent_again(client: httpx.Client, model: str, stated: str) -> None:
    etag = model.rpartition("/")[2].partition(".")[0]
    headers = {"If-None-Match": stated.format(etag), "Range": "bytes=0-1"}
    answer = client.get(model, headers=headers)
    assert answer.status_code == 304
    assert answer.content == b""
    assert answer.headers["etag"] == f'"{etag}"'
    assert answer.headers["cache-control"] == YEAR


def test_another_version_of_a_cache_is_replaced(client: httpx.Client, model: str) -> None:
    assert client.get(model, headers={"If-None-Match": '"other", W/"more"'}).status_code == 200


@given(data=st.data())
def test_any_range_is_that_part_of_the_file(
    client: httpx.Client, model: str, content: bytes, data: st.DataObject
) -> None:
    size = len(content)
    place = st.integers(0, size - 1) | st.sampled_from([0, 1, size - 1, 256 * 1024])
    first = data.draw(place)
    last = data.draw(st.none() | st.integers(first, 2 * size))
    answer = client.get(model, headers={"Range": f"bytes={first}-{'' if last is None else last}"})
    end = size if last is None else min(last + 1, size)
    assert answer.status_code == 206
    assert answer.content == content[first:end]
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
    assert answer.headers["content-length"] == str(end - first)


def test_the_end_of_a_file_can_be_asked_for(
    client: httpx.Client, model: str, content: bytes
) -> None:
    assert client.get(model, headers={"Range": "bytes=-5"}).content == content[-5:]
    everything = client.get(model, headers={"Range": f"bytes=-{len(content) + 9}"})
    assert (everything.status_code, everything.content) == (206, content)


@pytest.mark.parametrize("asked", ["bytes={}-", "bytes={}-{}0", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(
    client: httpx.Client, model: str, content: bytes, asked: str
) -> None:
    size = len(content)
    answer = client.get(model, headers={"Range": asked.format(size, size)})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{size}"
    assert "immutable" not in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "asked",
    ["bytes=-", "bytes=5-2", "bytes=0-1,4-5", "bytes=a-b", "lines=0-1", "bytes 0-1", "bytes=0-1x"],
)
def test_a_range_that_is_none_gives_the_file(
    client: httpx.Client, model: str, content: bytes, asked: str
) -> None:
    answer = client.get(model, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, content)


@pytest.mark.parametrize(
    ("validator", "status"),
    [('"{}"', 206), ('W/"{}"', 200), ('"other"', 200), ("Sat, 21 Nov 2026 09:00:00 GMT", 200)],
)
def test_a_download_goes_on_only_with_the_same_file(
    client: httpx.Client, model: str, validator: str, status: int
) -> None:
    etag = model.rpartition("/")[2].partition(".")[0]
    headers = {"Range": "bytes=9-", "If-Range": validator.format(etag)}
    assert client.get(model, headers=headers).status_code == status


def test_head_tells_all_but_the_content(client: httpx.Client, model: str, content: bytes) -> None:
    for path, size in ((model, len(content)), ("/metadata/timestamp.json", None)):
        whole = client.get(path)
        answer = client.head(path, headers={"Range": "bytes=0-1"})
        assert (answer.status_code, answer.content) == (200, b"")
        assert size in (None, int(answer.headers["content-length"]))
        for field in ("content-length", "etag", "cache-control", "content-type"):
            assert answer.headers[field] == whole.headers[field]


def test_files_are_only_read(client: httpx.Client, model: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, model).status_code == 405


HOSTILE = [
    "/metadata/",
    "/targets/",
    "/targets/models",
    "/targets/models/1/",
    "/targets/models/1/model.safetensors",
    "/targets/models/1/manifest.json",
    "/targets/../audit.jsonl",
    "/targets/../../keys/",
    "/targets/%2e%2e/%2e%2e/audit.jsonl",
    "/targets/..%2f..%2faudit.jsonl",
    "/targets//etc/passwd",
    "/targets/%2fetc/passwd",
    "/targets/models/1/%00",
    "/metadata/../../audit.jsonl",
    "/metadata/..%2f..%2fserver.toml",
    "/metadata/..%5c..%5caudit.jsonl",
    "/metadata/01.root.json",
    "/metadata/root.json",
    "/metadata/.timestamp.json.x.partial",
    "/metadata/1.keys.json",
    "/metadata/999999999.root.json",
    "/metadata/9999999999999999999999.root.json",
    "/metadata/%D9%A1.root.json",
    "/keys/",
    "/audit.jsonl",
    "/public/metadata/1.root.json",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_nothing_but_the_names_of_a_release_is_answered(client: httpx.Client, path: str) -> None:
    """The request goes out as it is: httpx would tidy the path."""
    with socket.create_connection((client.base_url.host, client.base_url.port)) as sent:
        sent.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sent.recv(65536), b""))
    assert answer.split()[1] == b"404"


@given(path=st.text(max_size=60))
def test_no_path_at_all_makes_it_fail(client: httpx.Client, path: str) -> None:
    for folder in ("metadata", "targets"):
        quoted = "".join(f"%{byte:02x}" for byte in path.encode())
        assert client.get(f"/{folder}/{quoted}").status_code == 404


def test_a_store_out_of_reach_is_told(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    (repository.folder / "server.toml").write_text('artefacts = "memory://away"\n')
    with running(app(Repository(repository.folder))) as address:
        monkeypatch.setattr(MemoryFileSystem, "info", unreachable)
        answer = httpx.get(f"{address}/targets/models/1/{'a' * 64}.model.safetensors")
    assert answer.status_code == 503
    assert "its log says why" in answer.json()["error"]
    assert "memory://away" in caplog.text
    assert "Connection refused" in caplog.text


def test_a_device_follows_through_these_routes(
    shared: Repository, client: httpx.Client, tmp_path: Path
) -> None:
    root = (shared.metadata / "1.root.json").read_bytes()
    assert Device(tmp_path, str(client.base_url).rstrip("/"), root).update().version == 1


def test_a_model_is_never_whole_in_memory(repository: Repository) -> None:
    import tracemalloc

    name = f"models/1/{'a' * 64}.model.safetensors"
    with (repository.folder / "public" / "targets" / name).open("wb") as file:
        os.truncate(file.fileno(), 64 << 20)
    with running(app(repository)) as address:
        httpx.get(f"{address}/metadata/timestamp.json")
        tracemalloc.start()
        received = 0
        with httpx.stream("GET", f"{address}/targets/{name}") as answer:
            for part in answer.iter_raw():
                received += len(part)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert received == 64 << 20
    assert peak < 8 << 20
