"""A repository with version 1 in stable, and a server of its files, for tests of every package.

What the fixtures need is imported in them: most tests publish nothing and need not wait for it.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bent_server import BentServer, bent

if TYPE_CHECKING:
    from server.repository import Repository


def pytest_configure() -> None:
    """Hear Ctrl-C as at a terminal, also where a runner started us with the signal ignored.

    Python then leaves it ignored, and so would every program that a test starts and interrupts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three model files of one architecture."""
    from version_repository import make_model

    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2, 3):
        make_model(folder / f"{seed}.safetensors", seed)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, models: list[Path]) -> Path:
    """The folder of a repository whose channel stable names version 1; all keys are at hand."""
    from version_repository import publish

    from server.creation import create
    from server.repository import Repository

    folder = tmp_path_factory.mktemp("template") / "versions"
    create(folder)
    publish(Repository(folder), models[0])
    return folder


@pytest.fixture
def repository(tmp_path: Path, template: Path) -> Repository:
    """A copy of the template, for one test."""
    from server.repository import Repository

    shutil.copytree(template, tmp_path / "versions")
    return Repository(tmp_path / "versions")


@pytest.fixture
def server(repository: Repository) -> Iterator[BentServer]:
    """A server of what devices fetch from the repository."""
    with bent(repository.folder / "public") as served:
        yield served
