"""Commands of `fedspk` run in this process, as somebody types them."""

from __future__ import annotations

import pytest

from fedspk.cli import run


def does(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run, expect success, and return what was printed."""
    assert run([*map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run, expect an exit code and nothing on standard error, and return what was printed."""
    assert run([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run, expect exit code 2 and exactly one line on standard error, and return it."""
    assert run([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err
