"""Versions of a main server: fetched and resumed, and every lie and fault refused in words."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import urllib3
from bent_server import Answer, BentServer, bent
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from version_repository import (
    expire,
    keys_but,
    keys_of,
    publish,
    publish_unchecked,
    release_unchecked,
    roll_back,
    root_of,
)

from fedspk import connection, remote
from fedspk.errors import FedspkError
from fedspk.files import DiskFullError
from fedspk.release import Channel, Manifest, channel_path, manifest_path
from fedspk.remote import RemoteVersions, VersionsRefused, VersionsUnreachable
from server import upkeep
from server.creation import AGGREGATOR, SERVER, create
from server.repository import Repository

DEVICE = 32 * "0"
MODEL = "model.safetensors"


@pytest.fixture
def device(tmp_path: Path, server: BentServer, repository: Repository) -> RemoteVersions:
    return RemoteVersions(server.address, tmp_path / "device", root_of(repository))


def later_process(device: RemoteVersions) -> RemoteVersions:
    return RemoteVersions(device.address, device.folder)


def bend_model(change: Callable[[Answer], None]) -> Callable[[str, Answer], None]:
    """Return a bend of the answers to requests for models."""
    return lambda path, answer: change(answer) if path.endswith(MODEL) else None


def refusal(device: RemoteVersions, reason: str, act: Callable[[], object] | None = None) -> str:
    """Return the sentence of a refusal for a reason."""
    with pytest.raises(VersionsRefused) as caught:
        (act or device.refresh)()
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_fetch(device: RemoteVersions, reason: str, tmp_path: Path, version: int = 1) -> str:
    """Return the sentence of a refused download, after which nothing is left of it."""
    path = tmp_path / "fetched"
    sentence = refusal(device, reason, lambda: device.fetch("model", version, path))
    assert not path.exists()
    assert not list(device.folder.glob("downloads/*"))
    return sentence


def away(device: RemoteVersions, act: Callable[[], object] | None = None) -> str:
    with pytest.raises(VersionsUnreachable) as caught:
        (act or device.refresh)()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_channel_manifest_and_model_come_as_they_were_published(
    device: RemoteVersions, models: list[Path], tmp_path: Path
) -> None:
    assert device.channel("stable") == Channel(name="stable", version=1)
    assert device.channel("canary") is None
    seen = []
    manifest = device.fetch(
        "model", 1, tmp_path / "deep" / "er", on_bytes=lambda *each: seen.append(each)
    )
    assert manifest == device.manifest("model", 1)
    assert (tmp_path / "deep" / "er").read_bytes() == models[0].read_bytes()
    assert seen[-1] == (manifest.length, manifest.length)
    assert seen == sorted(seen)
    release = device.release()
    assert release is not None
    assert len(release.signatures) == 2
    refusal(device, "damaged", lambda: device.manifest("model", 2))


def test_before_the_first_release_there_is_nothing(tmp_path: Path) -> None:
    create(tmp_path / "empty")
    repository = Repository(tmp_path / "empty")
    with bent(repository.folder / "public") as server:
        device = RemoteVersions(server.address, tmp_path / "device", root_of(repository))
        assert device.release() is None
        assert device.channel("stable") is None
        assert device.channel_of(DEVICE) is None


def test_a_look_without_news_asks_for_the_next_root_and_the_timestamp(
    device: RemoteVersions, server: BentServer
) -> None:
    device.channel_of(DEVICE)
    server.requests.clear()
    again = later_process(device)
    again.refresh()
    assert again.channel_of(DEVICE) == Channel(name="stable", version=1)
    assert server.paths() == ["/metadata/2.root.json", "/metadata/timestamp.json"]


def test_a_device_follows_publication_rollback_and_new_keys(
    device: RemoteVersions, repository: Repository, models: list[Path]
) -> None:
    device.refresh()
    publish(repository, models[1])
    device.refresh()
    assert device.channel("stable") == Channel(name="stable", version=2)
    upkeep.rotate_root(repository, keys_of(repository), None)
    roll_back(repository, 1)
    again = later_process(device)
    assert again.manifest("model", 3).rolled_back_to == 1


def test_canaries_follow_their_channel_until_stable_overtakes_it(
    device: RemoteVersions, repository: Repository, models: list[Path]
) -> None:
    for _ in range(2):
        publish(repository, models[1])

    def followed(stable: int, canary: int, share: float) -> int:
        channels = [
            Channel(name="stable", version=stable),
            Channel(name="canary", version=canary, share=share, salt="ab"),
        ]
        publish_unchecked(
            repository, {channel_path(each.name): each.to_json() for each in channels}
        )
        device.refresh()
        channel = device.channel_of(DEVICE)
        assert channel is not None
        return channel.version

    assert followed(stable=1, canary=2, share=1.0) == 2
    assert followed(stable=1, canary=2, share=0.0) == 1
    assert followed(stable=3, canary=2, share=1.0) == 3


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_download_cut_anywhere_goes_on_in_a_later_process(
    data: st.DataObject,
    template: Path,
    models: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    length = models[0].stat().st_size
    cuts = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=3))
    with bent(template / "public") as server:
        device = RemoteVersions(server.address, folder / "device", root_of(Repository(template)))
        got = 0
        for cut in cuts:
            server.bend = bend_model(lambda answer, cut=cut: setattr(answer, "cut", cut))
            if got + cut >= length:
                continue
            device = later_process(device)
            assert "broke off" in away(device, lambda d=device: d.fetch("model", 1, folder / "x"))
            assert not (folder / "x").exists()
            got += cut
        server.bend = lambda *_: None
        server.requests.clear()
        later_process(device).fetch("model", 1, folder / "x")
        assert (folder / "x").read_bytes() == models[0].read_bytes()
        path, headers = server.requests[-1]
        assert path.endswith(MODEL)
        assert headers.get("Range") == (f"bytes={got}-" if got else None)
        assert ("If-Range" in headers) == bool(got)
    assert list((folder / "device" / "downloads").iterdir()) == []


def cut_once(device: RemoteVersions, server: BentServer, at: int = 1000) -> None:
    """Leave a download of version 1 that broke off."""
    server.bend = bend_model(lambda answer: setattr(answer, "cut", at))
    away(device, lambda: device.fetch("model", 1, device.folder / "x"))
    server.bend = lambda *_: None


def test_a_server_without_ranges_is_asked_for_the_whole_again(
    device: RemoteVersions, server: BentServer, models: list[Path], tmp_path: Path
) -> None:
    cut_once(device, server)
    whole = models[0].read_bytes()

    def ignore_range(answer: Answer) -> None:
        answer.status, answer.body = 200, whole
        answer.headers |= {"Content-Length": str(len(whole))}

    server.bend = bend_model(ignore_range)
    device.fetch("model", 1, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == whole


def test_what_was_damaged_on_the_disk_is_fetched_again(
    device: RemoteVersions, server: BentServer, models: list[Path], tmp_path: Path
) -> None:
    cut_once(device, server)
    (part,) = device.folder.glob("downloads/*.part")
    part.write_bytes(b"\0" * 1000)
    device.fetch("model", 1, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == models[0].read_bytes()


@pytest.mark.parametrize(
    "place", ["bytes 999-{last}/{all}", "bytes 1000-{last}/9", "bytes */{all}", ""]
)
def test_a_rest_from_another_place_is_refused(
    device: RemoteVersions, server: BentServer, tmp_path: Path, place: str
) -> None:
    cut_once(device, server)
    length = device.manifest("model", 1).length
    text = place.format(last=length - 1, all=length)
    server.bend = bend_model(lambda answer: answer.headers.update({"Content-Range": text}))
    assert "another length" in refused_fetch(device, "damaged", tmp_path)
    server.bend = lambda *_: None
    device.fetch("model", 1, tmp_path / "x")


def test_a_range_that_the_server_has_not_is_refused_and_then_fetched_whole(
    device: RemoteVersions, server: BentServer, tmp_path: Path
) -> None:
    cut_once(device, server)
    server.bend = bend_model(lambda answer: setattr(answer, "status", 416))
    refused_fetch(device, "damaged", tmp_path)
    server.bend = lambda *_: None
    device.fetch("model", 1, tmp_path / "x")


def flip(answer: Answer) -> None:
    answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])


def lengthen(answer: Answer) -> None:
    answer.body += b"\0"
    answer.headers["Content-Length"] = str(len(answer.body))


def never_end(answer: Answer) -> None:
    answer.body += b"\0" * 50_000_000
    del answer.headers["Content-Length"]
    answer.headers["Connection"] = "close"


@pytest.mark.parametrize("damage", [flip, lengthen, never_end])
def test_a_file_that_is_not_the_signed_one_is_refused_and_not_kept(
    device: RemoteVersions,
    server: BentServer,
    tmp_path: Path,
    damage: Callable[[Answer], None],
) -> None:
    server.bend = bend_model(damage)
    refused_fetch(device, "damaged", tmp_path)
    assert server.sent < 10_000_000
    server.bend = lambda *_: None
    device.fetch("model", 1, tmp_path / "x")


def test_a_shorter_file_is_no_file(
    device: RemoteVersions, server: BentServer, tmp_path: Path
) -> None:
    def shorten(answer: Answer) -> None:
        answer.body = answer.body[:-1]
        answer.headers["Content-Length"] = str(len(answer.body))

    server.bend = bend_model(shorten)
    refused_fetch(device, "damaged", tmp_path)


@pytest.mark.parametrize("name", ["timestamp", "2.snapshot", "1.release", "stable", "manifest"])
@pytest.mark.parametrize("damage", [flip, lengthen])
def test_altered_metadata_and_small_targets_are_refused(
    device: RemoteVersions,
    server: BentServer,
    name: str,
    damage: Callable[[Answer], None],
) -> None:
    def bend(path: str, answer: Answer) -> None:
        if path.endswith(f"{name}.json") and answer.status == 200:
            damage(answer)

    server.bend = bend

    def look() -> None:
        device.channel("stable")
        device.manifest("model", 1)

    with pytest.raises((VersionsRefused, VersionsUnreachable)):
        look()
    server.bend = lambda *_: None
    later = later_process(device)
    assert later.channel("stable") == Channel(name="stable", version=1)


def test_metadata_put_back_to_an_older_state_are_refused(
    device: RemoteVersions, repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    public = repository.folder / "public"
    shutil.copytree(public, tmp_path / "old")
    publish(repository, models[1])
    device.refresh()
    shutil.rmtree(public)
    shutil.copytree(tmp_path / "old", public)
    assert "older state" in refusal(later_process(device), "rollback")


def test_a_frozen_state_is_refused_when_it_expires(
    device: RemoteVersions, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.refresh()
    expire(repository, monkeypatch)
    sentence = refusal(device, "expired")
    assert "timestamp.json is expired" in sentence
    assert "clock" not in sentence


@pytest.mark.parametrize(
    ("minutes", "hint"), [(-90, "90 minutes ahead of"), (90, "90 minutes behind"), (3, "")]
)
def test_an_expiry_that_the_clock_may_have_made_up_says_so(
    device: RemoteVersions,
    server: BentServer,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    minutes: int,
    hint: str,
) -> None:
    expire(repository, monkeypatch)
    told = datetime.now(UTC) + timedelta(minutes=minutes, seconds=10 if minutes > 0 else -10)
    server.bend = lambda _, answer: answer.headers.update(Date=format_datetime(told))
    sentence = refusal(device, "clock" if hint else "expired")
    assert hint in sentence


def test_a_clock_far_behind_judges_nothing(
    device: RemoteVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.refresh()
    monkeypatch.setattr(remote, "_now", lambda: datetime(1970, 1, 1, tzinfo=UTC))
    assert "set the clock" in refusal(device, "clock")
    early = datetime.now(UTC) - timedelta(days=2)
    monkeypatch.setattr(remote, "_now", lambda: early)
    assert "set the clock" in refusal(device, "clock")


@pytest.mark.parametrize("party", [AGGREGATOR, SERVER])
def test_a_release_with_one_of_two_signatures_is_refused(
    device: RemoteVersions, repository: Repository, monkeypatch: pytest.MonkeyPatch, party: str
) -> None:
    device.refresh()
    signers = keys_but(repository, party)
    monkeypatch.setattr(Repository, "check_signatures", lambda *_: None)
    release_unchecked(repository, signers, {})
    assert "lack signatures" in refusal(device, "signature")


def test_another_server_is_not_believed(
    device: RemoteVersions, tmp_path: Path, models: list[Path]
) -> None:
    device.refresh()
    create(tmp_path / "other")
    other = Repository(tmp_path / "other")
    publish(other, models[0])
    with bent(other.folder / "public") as server:
        refusal(RemoteVersions(server.address, device.folder), "signature")


def test_the_first_root_comes_from_the_caller(server: BentServer, tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match="no root is trusted yet"):
        RemoteVersions(server.address, tmp_path / "new")
    for wrong in (b"", b"{}", b'{"signed": {}, "signatures": []}'):
        with pytest.raises(FedspkError, match="not root metadata"):
            RemoteVersions(server.address, tmp_path / "new", wrong)
    with pytest.raises(FedspkError, match="no root is trusted yet"):
        RemoteVersions(server.address, tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"minimum_client": "99.0.0"}, "models/1/model.safetensors: needs fedspk 99.0.0 or newer"),
        ({"length": 5}, "5"),
        ({"content_hash": 64 * "0"}, "content hash"),
        ({"architecture": ("encoder", "transformer-9")}, "transformer-9"),
        ({"architecture": ("encoder_params", {"width": 0.25})}, "0.25"),
        (
            {
                "kind": "gan",
                "architecture": None,
                "generator": {"front_end": {}, "corpus": "corpus-1", "speakers": 3},
            },
            "belongs to another version",
        ),
        ({"version": 2}, "belongs to another version"),
    ],
)
def test_a_version_that_is_not_what_its_manifest_says_is_refused(
    device: RemoteVersions,
    repository: Repository,
    tmp_path: Path,
    change: dict[str, Any],
    match: str,
) -> None:
    fields = device.manifest("model", 1).model_dump()
    if isinstance(change.get("architecture"), tuple):
        name, value = change["architecture"]
        change = {"architecture": {**fields["architecture"], name: value}}
    manifest = Manifest.model_validate({**fields, **change})
    publish_unchecked(repository, {manifest_path("model", 1): manifest.to_json()})
    device.refresh()
    reason = "damaged" if "another version" in match else "incompatible"
    assert match in refused_fetch(device, reason, tmp_path)


def test_a_manifest_of_a_later_format_is_refused(
    device: RemoteVersions, repository: Repository, tmp_path: Path
) -> None:
    text = device.manifest("model", 1).to_json().replace(b'"format": 1', b'"format": 2')
    publish_unchecked(repository, {manifest_path("model", 1): text})
    device.refresh()
    assert "format" in refused_fetch(device, "incompatible", tmp_path)


def test_a_server_that_is_away_is_told_from_one_that_does_not_exist(
    device: RemoteVersions, server: BentServer, tmp_path: Path, repository: Repository
) -> None:
    root = root_of(repository)
    gone = RemoteVersions("http://127.0.0.1:1", tmp_path / "gone", root)
    assert "Connection refused" in away(gone)
    nobody = RemoteVersions("https://nobody.invalid", tmp_path / "nobody", root)
    assert "no host of this name" in away(nobody)


@pytest.mark.parametrize("status", [301, 403, 404, 500, 503])
def test_a_server_out_of_order_is_tried_again_later(
    device: RemoteVersions, server: BentServer, tmp_path: Path, status: int
) -> None:
    device.refresh()

    def bend(path: str, answer: Answer) -> None:
        if "root" not in path:
            answer.status = status
            answer.headers["Location"] = "https://example.org/"

    server.bend = bend
    assert f"status {status}" in away(device)
    assert f"status {status}" in away(device, lambda: device.fetch("model", 1, tmp_path / "x"))


@pytest.mark.parametrize(
    "address",
    ["speakers.example.org", "ftp://x.org", "https://", "https://a:b@x.org", "https://x.org/?a=b"],
)
def test_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match="https://HOST:PORT"):
        RemoteVersions(address, tmp_path, b"")


def test_a_silent_server_is_given_up(
    device: RemoteVersions, server: BentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_TIMEOUT", urllib3.Timeout(connect=1.0, read=0.1))
    monkeypatch.setattr(connection, "_RETRIES", urllib3.Retry(total=0))
    server.bend = lambda _, answer: setattr(answer, "drip", 0.5)
    assert "does not answer in time" in away(device)


def test_a_server_that_drips_is_given_up(
    device: RemoteVersions, server: BentServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection, "_WINDOW_S", 0.2)
    server.bend = bend_model(lambda answer: setattr(answer, "drip", 0.02))
    assert "too slowly" in away(device, lambda: device.fetch("model", 1, tmp_path / "x"))
    server.bend = lambda *_: None
    device.fetch("model", 1, tmp_path / "x")


def certificate(folder: Path, ends: timedelta = timedelta(days=1)) -> Path:
    """Write a certificate for 127.0.0.1 that signs itself, with its key."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "speakers")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now + ends)
        .add_extension(address, critical=False)
        .sign(key, None)
    )
    path = folder / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + private)
    return path


def test_a_private_authority_has_to_be_named(repository: Repository, tmp_path: Path) -> None:
    pem, root = certificate(tmp_path), root_of(repository)
    with bent(repository.folder / "public", pem) as server:
        assert "--ca" in away(RemoteVersions(server.address, tmp_path / "a", root))
        named = RemoteVersions(server.address, tmp_path / "b", root, pem)
        assert named.channel("stable") == Channel(name="stable", version=1)
    with pytest.raises(FedspkError, match="cannot be read as certificates"):
        RemoteVersions(server.address, tmp_path / "c", root, tmp_path / "none.pem")


def test_a_certificate_out_of_date_points_to_the_clock(
    repository: Repository, tmp_path: Path
) -> None:
    pem = certificate(tmp_path, ends=-timedelta(days=1))
    with bent(repository.folder / "public", pem) as server:
        sentence = away(RemoteVersions(server.address, tmp_path / "a", root_of(repository), pem))
    assert "clock" in sentence


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Yield a folder on a disk of `size` bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this process may mount no disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_to_be_full_and_the_download_goes_on_when_there_is_room(
    server: BentServer, repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    length = models[0].stat().st_size
    with small_disk(tmp_path / "disk", 2 * length) as disk:
        device = RemoteVersions(server.address, disk / "device", root_of(repository))
        device.refresh()
        filler = disk / "filler"

        def fill(*_: int) -> None:
            with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
                file.write(bytes(4 * length))

        cut_once(device, server, at=length // 2)
        fetch = partial(device.fetch, "model", 1, disk / "x")
        with pytest.raises(DiskFullError, match="disk is full"):
            fetch(on_bytes=fill)
        server.requests.clear()
        with pytest.raises(DiskFullError, match="no room"):
            fetch()
        assert not any(path.endswith(MODEL) for path in server.paths())
        filler.unlink()
        fetch()
        assert "Range" in server.requests[-1][1]
        assert (disk / "x").read_bytes() == models[0].read_bytes()


def test_a_model_may_be_put_on_another_disk(
    device: RemoteVersions, models: list[Path], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2 * models[0].stat().st_size) as disk:
        device.fetch("model", 1, disk / "x")
        assert (disk / "x").read_bytes() == models[0].read_bytes()
        assert list(disk.iterdir()) == [disk / "x"]


def test_only_the_download_under_way_is_kept(
    device: RemoteVersions,
    server: BentServer,
    repository: Repository,
    models: list[Path],
    tmp_path: Path,
) -> None:
    cut_once(device, server)
    publish(repository, models[1])
    device.refresh()
    device.fetch("model", 2, tmp_path / "x")
    assert list(device.folder.glob("downloads/*")) == []
