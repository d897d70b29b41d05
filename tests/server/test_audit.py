"""The audit log: pages, torn lines, and changes that were killed."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from fedspk.errors import FedspkError
from server.audit import AuditLog


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.jsonl")


def test_pages_give_every_line_once_newest_first(log: AuditLog) -> None:
    for number in range(2000):  # several blocks
        log.note("count", "ann", number=number, filling="x" * 60)
    found, before = log.page(300)
    while before is not None:
        more, before = log.page(300, before)
        found += more
    assert [each["number"] for each in found] == list(range(2000))[::-1]
    assert log.entries() == found[::-1]


def test_an_empty_log_has_an_empty_page(log: AuditLog) -> None:
    assert log.page(10) == ([], None)


def test_a_torn_line_is_left_out_and_the_next_is_whole(log: AuditLog, tmp_path: Path) -> None:
    log.note("first", "ann")
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"time": "2026-')
    assert [each["action"] for each in log.entries()] == ["first"]
    log.note("second", "ann")
    assert [each["action"] for each in log.entries()] == ["first", "second"]


def test_a_line_of_which_a_part_was_written_is_an_error(log: AuditLog, tmp_path: Path) -> None:
    log.note("first", "ann")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "audit.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(FedspkError, match="cannot be written"):
            log.note("second", "ann")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.note("third", "ann")
    assert [each["action"] for each in log.entries()] == ["first", "third"]


def test_a_killed_change_is_marked_whatever_devices_did_meanwhile(log: AuditLog) -> None:
    log.append("publish", 5, "ann")
    for number in range(1000):
        log.note("register", f"device {number:032x}")
    log.settle(timestamp=4)
    log.settle(timestamp=4)
    assert [each["action"] for each in log.entries()].count("interrupted") == 1
    assert log.entries()[-1]["of"] == "publish"


def test_a_change_that_took_effect_is_not_marked(log: AuditLog) -> None:
    log.append("publish", 5, "ann")
    log.settle(timestamp=5)
    assert [each["action"] for each in log.entries()] == ["publish"]
