"""Target files in a local folder and in fsspec stores: whole or absent, and never rewritten."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from main_server import bearer, make_service, serving
from version_repository import publish, roll_back

from fedspk.api import API
from fedspk.errors import FedspkError
from fedspk.release import manifest_path, model_path
from server.artefacts import Artefacts, hash_in, open_artefacts
from server.creation import create
from server.repository import Repository
from server.service import UNAVAILABLE

MODEL = bytes(range(256)) * 5000
CHANNEL = b"{1}"
NAME = f"models/7/{sha256(MODEL).hexdigest()}.model.safetensors"
OTHER = f"channels/{sha256(CHANNEL).hexdigest()}.stable.json"


class FullStore(MemoryFileSystem):
    """A store in memory that can lose the connection, or be full."""

    protocol = "full"
    store: dict[str, Any] = {}  # noqa: RUF012 (as in the base class)
    pseudo_dirs = [""]  # noqa: RUF012
    fails_at = ""
    failure: Exception | None = None

    def mv(self, *arguments: Any, **more: Any) -> None:
        if self.fails_at == "mv":
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        super().mv(*arguments, **more)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if self.failure:
            raise self.failure
        if self.fails_at == "makedirs":
            raise OSError(errno.ENOSPC, "No space left on device")
        super().makedirs(path, exist_ok)


@pytest.fixture(params=["folder", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield {
        "folder": str(tmp_path / "store"),
        "file": f"file://{tmp_path / 'store'}",
        "memory": "memory://fedspk/store",
    }[request.param]
    MemoryFileSystem.store.clear()


@pytest.fixture
def store(url: str, tmp_path: Path) -> Artefacts:
    return open_artefacts(url, tmp_path)


@pytest.fixture
def full() -> Iterator[type[FullStore]]:
    fsspec.register_implementation("full", FullStore, clobber=True)
    yield FullStore
    FullStore.fails_at, FullStore.failure = "", None
    FullStore.store.clear()


def _set_artefacts(folder: Path, url: str) -> None:
    (folder / "server.toml").write_text(f"artefacts = {json.dumps(url)}\n")


def test_what_is_written_is_read_in_parts(store: Artefacts, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(MODEL)
    store.write(NAME, model)
    store.write(OTHER, CHANNEL)
    assert (store.size(NAME), store.size(OTHER)) == (1_280_000, 3)
    assert store.read(NAME, 1_000, 1_010) == MODEL[1_000:1_010]
    assert store.read(NAME, 1_279_999, 2_000_000) == b"\xff"
    assert store.fetch(NAME, tmp_path / "copies").read_bytes() == MODEL


def test_what_is_not_there_is_told(store: Artefacts, tmp_path: Path) -> None:
    assert store.size(NAME) is None
    with pytest.raises(FedspkError, match="cannot be read"):
        store.read(NAME, 0, 10)
    store.keep_only([])


def test_a_file_is_never_written_again(store: Artefacts) -> None:
    store.write(OTHER, CHANNEL)
    store.write(OTHER, b"{2}")
    assert store.read(OTHER, 0, 9) == CHANNEL


def test_content_that_has_not_the_hash_in_the_name_is_not_stored(
    store: Artefacts, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.write_bytes(MODEL[::-1])
    for content in (model, MODEL + b"\0"):
        with pytest.raises(FedspkError, match="its file has changed since it was read"):
            store.write(NAME, content)
        assert store.size(NAME) is None
    store.write(NAME, MODEL)
    assert store.size(NAME) == len(MODEL)


def test_only_target_files_are_deleted(url: str, tmp_path: Path) -> None:
    store = open_artefacts(url, tmp_path)
    kept = NAME.replace("models/7", "models/8")
    for name, content in ((NAME, MODEL), (kept, MODEL), (OTHER, CHANNEL)):
        store.write(name, content)
    files, folder = fsspec.url_to_fs(url)
    files.pipe_file(f"{folder}/{NAME}.partial", b"12")
    files.pipe_file(f"{folder}/README", b"not ours")
    store.keep_only([kept])
    left = {path.rpartition("store/")[2] for path in files.find(folder)}
    assert left == {kept, "README"}


@pytest.mark.parametrize("step", ["makedirs", "mv"])
def test_a_failed_upload_leaves_the_name_free(full: type[FullStore], step: str) -> None:
    store = open_artefacts("full://store", Path())
    full.fails_at = step
    with pytest.raises(FedspkError, match=r"full://store/models/7/\w+\.model\.safetensors: cannot"):
        store.write(NAME, MODEL)
    assert store.size(NAME) is None
    full.fails_at = ""
    store.keep_only([])
    assert not full.store
    store.write(NAME, MODEL)
    assert store.read(NAME, 0, 9) == MODEL[:9]


def test_a_repository_publishes_and_goes_back_in_any_store(
    url: str, models: list[Path], tmp_path: Path
) -> None:
    create(tmp_path / "versions")
    _set_artefacts(tmp_path / "versions", url)
    repository = Repository(tmp_path / "versions")
    publish(repository, models[0])
    publish(repository, models[1])
    roll_back(repository, 1)
    state = repository.read()
    channel = repository.channel(state, "stable")
    assert channel is not None
    assert channel.version == 3
    files, folder = fsspec.url_to_fs(url)
    stored = {path.rpartition("store/")[2] for path in files.find(folder)}
    released = state.release and state.release.signed.targets
    assert released
    assert {released[path].get_prefixed_paths()[0] for path in released} <= stored
    assert not list((repository.folder / "public" / "targets").rglob("*.*"))
    assert not (repository.folder / "fetched").exists()


def test_a_store_that_fails_during_a_change_leaves_the_old_version(
    full: type[FullStore], models: list[Path], tmp_path: Path
) -> None:
    create(tmp_path / "versions")
    _set_artefacts(tmp_path / "versions", "full://store")
    repository = Repository(tmp_path / "versions")
    publish(repository, models[0])
    full.fails_at = "mv"
    with pytest.raises(FedspkError, match="Connection reset"):
        publish(repository, models[1])
    assert repository.read().timestamp.signed.version == 2
    full.fails_at = ""
    publish(repository, models[1])
    state = repository.read()
    assert repository.manifest(state, "model", 2).parent is not None
    assert not [name for name in full.store if name.endswith(".partial")]


def test_a_damaged_manifest_is_told(repository: Repository) -> None:
    state = repository.read()
    path = repository.target(state, manifest_path("model", 1))
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(FedspkError, match=r"models/1/manifest\.json is damaged"):
        repository.manifest(state, "model", 1)


def test_an_unfinished_file_elsewhere_in_the_folder_is_left_alone(repository: Repository) -> None:
    upload = repository.folder / "uploads" / ".model.x.partial"
    upload.parent.mkdir()
    upload.write_bytes(b"still coming")
    with repository.changing():
        assert upload.exists()


def test_names_are_those_of_targets_alone() -> None:
    assert hash_in(NAME) == sha256(MODEL).hexdigest()
    for name in (
        "",
        "models/7/model.safetensors",
        f"models/07/{'a' * 64}.model.safetensors",
        f"models/7/{'A' * 64}.model.safetensors",
        f"models/7/{'a' * 63}.model.safetensors",
        f"models/7/{'a' * 64}.keys.pem",
        f"models/7/../7/{'a' * 64}.manifest.json",
        f"channels/{'a' * 64}.beta.json",
        f"channels/{'a' * 64}.stable.json\n",
        f"/channels/{'a' * 64}.stable.json",
    ):
        assert hash_in(name) is None, name


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("relative/folder", "is no absolute path"),
        ("nonsense://x/y", "nonsense"),
        ("sftp://operator:hunter2@localhost:1/versions", "sftp://localhost:1/versions"),
    ],
)
def test_a_wrong_address_is_refused_without_its_password(
    url: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(FedspkError) as caught:
        open_artefacts(url, tmp_path)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "failure",
    [Exception("no endpoint s3.internal"), TimeoutError(), PermissionError("s3.internal")],
    ids=lambda each: type(each).__name__,
)
def test_a_store_that_is_away_is_no_fault_of_who_publishes(
    full: type[FullStore],
    models: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    create(tmp_path / "versions")
    _set_artefacts(tmp_path / "versions", "full://store")
    service = make_service(Repository(tmp_path / "versions"))
    headers = bearer(service.registry.add_operator("ann", "operator"))
    content = models[0].read_bytes()
    body = {"model": sha256(content).hexdigest(), "manifest": {}}
    with serving(service) as client:
        client.put(f"{API}/uploads/{body['model']}", content=content, headers=headers)
        full.failure = failure
        answer = client.post(f"{API}/versions", json=body, headers=headers)
        assert answer.status_code == 503, answer.text
        assert answer.json() == {"error": UNAVAILABLE}
        assert "full://store/models/1/" in caplog.text
        full.failure = None
        assert client.post(f"{API}/versions", json=body, headers=headers).status_code == 201
    service.registry.close()


def test_an_object_store_works_like_a_folder(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3").mkdir("bucket")
        create(tmp_path / "versions")
        _set_artefacts(tmp_path / "versions", "s3://bucket/versions")
        repository = Repository(tmp_path / "versions")
        publish(repository, models[0])
        publish(repository, models[1])
        roll_back(repository, 1)
        state = repository.read()
        with repository.changing():
            copy = repository.target(state, model_path("model", 3))
            assert copy.read_bytes() == models[0].read_bytes()
        server.stop()
        with pytest.raises(FedspkError, match="s3://bucket/versions"):
            publish(repository, models[1])
    finally:
        server.stop()
