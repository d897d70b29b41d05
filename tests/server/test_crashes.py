"""A change killed before each of its writes: devices see the old version or the new one.

The change runs in a forked process, which an audit hook of Python kills (SIGKILL) before its n-th
change of a file or folder, for every n until it comes through.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from version_repository import Device, keys_of, promote, publish, roll_back, root_of, served

from server import upkeep
from server.creation import create
from server.repository import Repository

Change = Callable[[Repository, list[Path]], None]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

CHANGES: dict[str, tuple[Change, int]] = {  # and which version stable names afterwards
    "publish": (lambda repository, models: publish(repository, models[0]), 4),
    "promote": (lambda repository, _: promote(repository, 3), 3),
    "rollback": (lambda repository, _: roll_back(repository, 1), 4),
    "renew": (lambda repository, _: _renew(repository), 2),
    "rotate timestamp": (lambda repository, _: _rotate(repository, "timestamp"), 2),
    "rotate snapshot": (lambda repository, _: _rotate(repository, "snapshot"), 2),
    "rotate targets": (lambda repository, _: _rotate(repository, "targets"), 2),
    "rotate server": (lambda repository, _: _rotate(repository, "release-server"), 2),
    "rotate root": (lambda repository, _: _rotate(repository, "root"), 2),
}


def _renew(repository: Repository) -> None:
    upkeep.renew(repository, keys_of(repository))


def _rotate(repository: Repository, role: str) -> None:
    keys = keys_of(repository)
    if role == "root":
        upkeep.rotate_root(repository, keys, None)
    elif role == "release-server":
        upkeep.rotate_party(repository, role, keys, None)
    else:
        upkeep.rotate_role(repository, role, keys, None)


def killed_before_write(number: int, folder: Path, change: Callable[[], None]) -> bool:
    """Run a change in a process of its own; say whether its n-th write under `folder` killed it."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            is_write = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
            )
            if is_write and str(arguments[0]).startswith(str(folder)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            change()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def restarts(folder: Path, original: Path, change: Callable[[], None]) -> Iterator[bool]:
    """Yield with the folder as the change left it, killed before its first write, its second ..."""
    for number in range(1, 200):
        shutil.rmtree(folder)
        shutil.copytree(original, folder)
        was_killed = killed_before_write(number, folder, change)
        yield was_killed
        if not was_killed:
            assert number > 5, "the change wrote next to nothing: nothing was tested"
            return
    raise AssertionError("the change never came through")


_SLOW = ("rollback", "rotate snapshot", "rotate targets", "rotate root")  # much like others


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in CHANGES],
)
def test_a_killed_change_leaves_the_old_version_or_the_new_one(
    repository: Repository, models: list[Path], tmp_path: Path, name: str
) -> None:
    change, after = CHANGES[name]
    publish(repository, models[1])
    publish(repository, models[0], channel=None)
    root = root_of(repository)
    original = tmp_path / "original"
    shutil.copytree(repository.folder, original)
    seen = set()
    with served(repository.folder / "public") as address:
        Device(tmp_path / "faithful", address, root).update()
        states = restarts(repository.folder, original, lambda: change(repository, models))
        for number, was_killed in enumerate(states):
            faithful = tmp_path / f"faithful-{number}"
            shutil.copytree(tmp_path / "faithful", faithful, symlinks=True)
            devices = [
                Device(faithful, address, root),
                Device(tmp_path / f"new-{number}", address, root),
            ]
            versions = {each.update().version for each in devices}
            assert versions <= {2, after}
            assert len(versions) == 1
            seen |= versions
            if was_killed:
                with repository.changing():
                    assert_tidy(repository)
                    entries = repository.audit.entries()
                    assert all(each["action"] for each in entries)
                if versions == {2}:  # what was not done can be done again
                    change(repository, models)
                assert {each.update().version for each in devices} == {after}
    assert seen == {2, after}


def assert_tidy(repository: Repository) -> None:
    """Nothing lies in the public folder that the present or an earlier state does not name."""
    state = repository.read()
    named = {"timestamp.json"}
    for role, metadata in state.roles().items():
        if role != "timestamp":
            named |= {f"{n}.{role}.json" for n in range(1, metadata.signed.version + 1)}
    assert {path.name for path in repository.metadata.iterdir()} <= named
    assert not list(repository.folder.rglob("*.partial"))
    models = repository.folder / "public" / "targets" / "models"
    assert state.released is not None
    released = {path.split("/")[1] for path in state.released.targets if "model.s" in path}
    assert {each.name for each in models.iterdir() if any(each.iterdir())} == released


def test_a_change_killed_before_its_timestamp_is_marked_in_the_audit_log(
    repository: Repository, models: list[Path], tmp_path: Path
) -> None:
    original = tmp_path / "original"
    shutil.copytree(repository.folder, original)
    last = []
    for _ in restarts(repository.folder, original, lambda: publish(repository, models[1])):
        with repository.changing() as state:
            last.append((repository.audit.entries()[-1]["action"], state.timestamp.signed.version))
    assert set(last) == {("publish", 2), ("interrupted", 2), ("publish", 3)}


def test_a_killed_creation_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "versions"
    for number in range(1, 200):
        if not killed_before_write(number, tmp_path, lambda: create(folder)):
            break
        if folder.exists():  # the last write has been done
            Repository(folder).read()
            shutil.rmtree(folder)
    assert number > 20
    Repository(folder).read()
    assert [path.name for path in tmp_path.iterdir()] == ["versions"]


def test_two_processes_never_change_a_repository_at_once(repository: Repository) -> None:
    from fedspk.errors import FedspkError

    with (
        repository.changing(),
        pytest.raises(FedspkError, match="is being changed by another process"),
        Repository(repository.folder).changing(),
    ):
        pass
