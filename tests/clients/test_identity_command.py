"""`fedspk identity`: what whoever deploys a fleet types, and what a mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import typed_commands

from fedspk.cli import run
from fedspk.secagg.keys import DeviceRegister, Identity


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return typed_commands.fails(capsys, "identity", *arguments)


def made(capsys: pytest.CaptureFixture[str], path: Path, device: str) -> str:
    assert run(["identity", "new", "--device", device, "--out", str(path)]) == 0
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("command", ["new", "register"])
def test_every_command_has_help_with_an_example(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run(["identity", command, "--help"]) == 0
    assert f"Example: fedspk identity {command}" in " ".join(capsys.readouterr().out.split())


def test_what_new_prints_is_what_register_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [made(capsys, tmp_path / f"{name}.json", name) for name in ("kitchen", "hall")]
    register = tmp_path / "register.json"
    for line in lines:
        assert run(["identity", "register", "--out", str(register), line]) == 0
    keys = DeviceRegister.load(register).keys
    assert keys["hall"] == Identity.load(tmp_path / "hall.json").public
    assert sorted(keys) == ["hall", "kitchen"]
    assert (tmp_path / "hall.json").stat().st_mode & 0o777 == 0o600


def test_an_identity_and_a_registered_key_are_never_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, register = tmp_path / "kitchen.json", str(tmp_path / "register.json")
    line = made(capsys, path, "kitchen")
    before = path.read_bytes()
    assert "is there already" in fails(capsys, "new", "--device", "kitchen", "--out", str(path))
    assert path.read_bytes() == before
    assert run(["identity", "register", "--out", register, line]) == 0
    capsys.readouterr()
    other = made(capsys, tmp_path / "other.json", "kitchen")
    assert "another key for kitchen" in fails(capsys, "register", "--out", register, other)
    assert run(["identity", "register", "--out", register, line]) == 0


def test_wrong_input_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "register.json")]
    assert "DEVICE=KEY" in fails(capsys, "register", *out, "kitchen=no hex")
    assert "32 bytes" in fails(capsys, "register", *out, "kitchen=abcd")
    assert "device name" in fails(capsys, "register", *out, "two words=" + 32 * "ab")
    assert "named twice" in fails(capsys, "register", *out, "a=" + 32 * "ab", "a=" + 32 * "cd")
    assert "device name" in fails(capsys, "new", "--device", "../up", "--out", str(tmp_path / "x"))
    assert "--out" in fails(capsys, "new", "--device", "kitchen")
    missing = str(tmp_path / "file" / "x")
    (tmp_path / "file").write_text("in the way")
    assert "file" in fails(capsys, "new", "--device", "kitchen", "--out", missing)
    (tmp_path / "register.json").write_text("{}")
    assert "register.json" in fails(capsys, "register", *out, "kitchen=" + 32 * "ab")
