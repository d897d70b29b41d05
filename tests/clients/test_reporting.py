"""When a device looks for versions and reports, in made-up time; and that its reports arrive."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from small_server import small_server
from toy_device import new_device

from clients.follower import Follower
from clients.registration import link_of, register
from clients.reporting import EVERY, Reporter
from clients.schedule import Backoff, Schedule
from clients.server_link import ServerLink
from fedspk.api import Report
from fedspk.connection import VersionsUnreachable
from fedspk.errors import FedspkError

TOKEN = "fedspk-token-0123456789abcdef"
HOUR = 3600.0


pytestmark = pytest.mark.usefixtures("quick_passphrases")


def report(version: int, **fields: object) -> Report:
    return Report.model_validate(
        {
            "version": version,
            "content_hash": 64 * "a",
            "state": "serving",
            "client": "0.1.0",
            **fields,
        }
    )


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeLink(ServerLink):
    """A link that is away or not."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_away = False
        self.heard: list[Report] = []
        self.tries: list[float] = []

    def report(self, report: Report) -> None:
        self.tries.append(self.clock())
        if self.is_away:
            raise VersionsUnreachable("the server is away.")
        self.heard.append(report)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def link(clock: Clock) -> FakeLink:
    return FakeLink(clock)


def reporter_of(link: FakeLink | None, clock: Clock) -> Reporter:
    return Reporter(lambda: link, Backoff(random.Random(1)), clock)


def test_news_are_reported_at_once_and_the_same_again_now_and_then(
    link: FakeLink, clock: Clock
) -> None:
    reporter = reporter_of(link, clock)
    for _ in range(EVERY):
        reporter.note(report(1))
    assert link.heard == [report(1)]
    reporter.note(report(1))
    assert link.heard == 2 * [report(1)]
    reporter.note(report(1, state="updating"))
    reporter.note(report(2))
    assert link.heard[2:] == [report(1, state="updating"), report(2)]


def test_a_report_that_does_not_arrive_is_tried_later_and_later(
    link: FakeLink, clock: Clock
) -> None:
    reporter = reporter_of(link, clock)
    link.is_away = True
    reporter.note(report(1))
    while clock.now < 12 * HOUR:
        wait = reporter.wait()
        assert wait is not None
        clock.now += wait
        reporter.send()
    pauses = [after - before for before, after in pairwise(link.tries)]
    assert 48 <= pauses[0] <= 72
    assert all(after > 1.3 * before for before, after in pairwise(pauses[:4]))
    assert max(pauses) <= 1.2 * HOUR
    reporter.note(report(2))
    link.is_away = False
    clock.now += 2 * HOUR
    reporter.send()
    assert link.heard == [report(2)]
    assert reporter.wait() is None


def test_a_state_that_passed_unheard_is_not_reported(link: FakeLink, clock: Clock) -> None:
    reporter = reporter_of(link, clock)
    reporter.note(report(1))
    link.is_away = True
    reporter.note(report(1, state="updating"))
    link.is_away = False
    reporter.note(report(1))
    clock.now += HOUR
    reporter.send()
    assert link.heard == [report(1)]


def test_an_unregistered_device_is_silent_until_it_registers(link: FakeLink, clock: Clock) -> None:
    links: list[FakeLink | None] = [None]
    reporter = Reporter(lambda: links[0], Backoff(random.Random(1)), clock)
    reporter.note(report(1))
    assert reporter.wait() is None
    links[0] = link
    reporter.note(report(1))
    assert link.heard == [report(1)]


def test_reports_arrive_signed_in_rising_time(tmp_path: Path) -> None:
    vault = new_device(tmp_path / "home")._vault
    with small_server(TOKEN) as server:
        register(vault, server.address, TOKEN)
        reporter = Reporter(lambda: link_of(vault), Backoff(random.Random(1)))
        for version in (1, 2, 3):
            reporter.note(report(version))
        assert server.reports == [report(version) for version in (1, 2, 3)]


def test_a_revoked_devices_report_disturbs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vault = new_device(tmp_path / "home")._vault
    with small_server(TOKEN) as server:
        register(vault, server.address, TOKEN)
        server.answers.append((403, b'{"error": "the device was revoked."}'))
        reporter = Reporter(lambda: link_of(vault), Backoff(random.Random(1)))
        reporter.note(report(1))
    assert "the device was revoked" in caplog.text
    assert reporter.wait() is not None


def test_no_fault_of_a_report_ends_the_looks(link: FakeLink, clock: Clock) -> None:
    def broken() -> FakeLink | None:
        raise OSError(24, "Too many open files")

    reporter = Reporter(broken, Backoff(random.Random(1)), clock)
    reporter.note(report(1))
    assert reporter.wait() is not None


def looks(
    clock: Clock,
    look: Callable[[Callable[[Report], None]], Report],
    link: FakeLink,
    until: float,
    period: float = HOUR,
    seed: int = 1,
) -> list[float]:
    """Let a follower run in made-up time and return when it looked, in seconds from its start."""
    begun, times = clock.now, []

    def noted(tell: Callable[[Report], None]) -> Report:
        times.append(clock.now - begun)
        return look(tell)

    def pause(seconds: float) -> bool:
        clock.now += seconds
        return clock.now - begun > until

    schedule = Schedule(period, random.Random(seed))
    Follower(noted, reporter_of(link, clock), schedule, clock, pause).run()
    return times


def test_looks_come_at_random_round_the_period(link: FakeLink, clock: Clock) -> None:
    times = looks(clock, lambda _: report(1), link, 50 * HOUR)
    assert 0 <= times[0] <= 60
    pauses = [after - before for before, after in pairwise(times)]
    assert all(0.8 * HOUR <= each <= 1.2 * HOUR for each in pauses)
    assert max(pauses) - min(pauses) > 0.2 * HOUR
    assert link.heard[0] == report(1)
    assert len(link.heard) == 1 + (len(times) - 1) // EVERY


def test_a_fleet_does_not_look_at_once() -> None:
    firsts = []
    for seed in range(200):
        clock = Clock()
        firsts.append(looks(clock, lambda _: report(1), FakeLink(clock), 70, seed=seed)[0])
    counts = [sum(start <= each < start + 10 for each in firsts) for start in range(0, 60, 10)]
    assert min(counts) >= 15


@pytest.mark.parametrize("fault", ["unreachable", "error", "unforeseen"])
def test_an_unreachable_server_is_tried_sooner_then_later(
    link: FakeLink, clock: Clock, fault: str
) -> None:
    def look(_: object) -> Report:
        if fault == "error":
            raise FedspkError("the process was ended.")
        if fault == "unforeseen":
            raise OSError(12, "Cannot allocate memory")
        return report(1, state="failed", failure="unreachable")

    times = looks(clock, look, link, 24 * HOUR)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses[0] < 0.1 * HOUR
    assert all(after > before for before, after in pairwise(pauses[:5]))
    assert 0.7 * HOUR < max(pauses) <= 1.2 * HOUR


def test_a_version_that_will_not_do_does_not_make_looks_more_frequent(
    link: FakeLink, clock: Clock
) -> None:
    failed = report(1, state="failed", failure="incompatible", attempted=2)
    times = looks(clock, lambda _: failed, link, 10 * HOUR)
    assert len(times) <= 13
    assert link.heard == [failed]


def test_the_update_is_told_before_it_is_done(link: FakeLink, clock: Clock) -> None:
    def look(tell: Callable[[Report], None]) -> Report:
        tell(report(1, state="updating", attempted=2))
        return report(2)

    looks(clock, look, link, 100)
    assert [each.state for each in link.heard] == ["updating", "serving"]


def test_waiting_for_the_next_try_of_a_report_does_not_delay_looks(
    link: FakeLink, clock: Clock
) -> None:
    link.is_away = True
    times = looks(clock, lambda _: report(1), link, 10 * HOUR)
    assert 8 <= len(times) <= 13
    assert len(link.tries) > 10
