"""What tests of devices share: devices, how they derive keys and compile quickly, their options."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import following_device
import pytest
import toy_device
from bent_server import BentServer
from toy_device import new_device
from version_repository import root_of

from clients.followed import MainServer
from clients.recogniser import Recogniser
from server.repository import Repository


@pytest.fixture
def quick_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spend next to nothing on deriving keys from passphrases."""
    toy_device.quick_passphrases(monkeypatch)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spend next to nothing on passphrases and compilation."""
    following_device.quickly(monkeypatch)


@pytest.fixture
def core_dumps_as_they_were() -> Iterator[None]:
    """Allow core dumps again, which commands on a device forbid their process."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    """The options that say where a device is, or is to be."""
    passphrase = tmp_path / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_bytes(toy_device.PASSPHRASE)
    return ["--home", str(tmp_path / "home"), "--passphrase-file", str(passphrase)]


@pytest.fixture
def device(tmp_path: Path) -> Recogniser:
    """A device of two users, whose model came from a file."""
    return new_device(tmp_path / "home", "anna", "bert")


@pytest.fixture
def followed(server: BentServer, repository: Repository) -> MainServer:
    """The server of the repository, as devices are told of it."""
    return MainServer(server.address, root_of(repository))
