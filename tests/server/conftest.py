"""Models made once, a repository with version 1 in stable, and its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from version_repository import Device, make_model, publish, served

from server.creation import create
from server.repository import Repository


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two model files of one architecture."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        make_model(folder / f"{seed}.safetensors", seed)
    return sorted(folder.iterdir())


@pytest.fixture
def repository(tmp_path: Path, models: list[Path]) -> Repository:
    """A repository whose channel stable names version 1; all keys are at hand."""
    create(tmp_path / "versions")
    made = Repository(tmp_path / "versions")
    publish(made, models[0])
    return made


@pytest.fixture
def device(tmp_path: Path, repository: Repository) -> Iterator[Callable[[str], Device]]:
    """Make devices by name that know the repository's first root."""
    root = (repository.metadata / "1.root.json").read_bytes()
    with served(repository.folder / "public") as address:
        yield lambda name: Device(tmp_path / "devices" / name, address, root)
