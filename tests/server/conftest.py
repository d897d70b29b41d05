"""The main server over a repository with version 1 in stable, and devices of that repository."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from main_server import make_service
from version_repository import Device, root_of, served

from server.repository import Repository
from server.service import Service


@pytest.fixture
def device(tmp_path: Path, repository: Repository) -> Iterator[Callable[[str], Device]]:
    """Make devices by name that know the repository's first root."""
    with served(repository.folder / "public") as address:
        yield lambda name: Device(tmp_path / "devices" / name, address, root_of(repository))


@pytest.fixture
def service(repository: Repository) -> Iterator[Service]:
    """A main server with all keys at hand."""
    made = make_service(repository)
    yield made
    made.registry.close()
