"""What a running device does on its own: look for a new version now and then, and report.

What takes long happens in a process of low priority (`clients.update_process`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from clients.reporting import Reporter
from clients.schedule import Schedule
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from fedspk.api import Report

_LOG = logging.getLogger(__name__)

LONGEST_S = 86_400.0
"""A look or a report that takes longer hangs; a download that was cut short then goes on."""

Look: TypeAlias = Callable[[Callable[["Report"], None]], "Report"]
"""Looks once, tells what it reports on the way, and returns the last report."""


class Follower:
    """Looks and reports until it is told to stop.

    Args:
        look: looks for a new version once.
        reporter: tells the main server.
        schedule: when to look.
        clock: seconds that never go back.
        pause: waits for so many seconds at most and says whether it is time to stop.
    """

    def __init__(
        self,
        look: Look,
        reporter: Reporter,
        schedule: Schedule,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self._look = look
        self._reporter = reporter
        self._schedule = schedule
        self._clock = clock
        self._stop = threading.Event()
        self._busy_since: float | None = None
        self._pause = pause or self._stop.wait

    def run(self) -> None:
        """Go on until `stop`; no fault ends it."""
        next_look = self._clock() + self._schedule.first()
        while not self._pause(self._wait(next_look)):
            self._busy_since = self._clock()
            if self._clock() >= next_look:
                next_look = self._clock() + self._schedule.next(reached=self._take_look())
            self._reporter.send()
            self._busy_since = None

    def hangs(self) -> bool:
        """Say whether a look or a report takes longer than `LONGEST_S`."""
        since = self._busy_since
        return since is not None and self._clock() - since > LONGEST_S

    def stop(self) -> None:
        """Let `run` end after what it is doing."""
        self._stop.set()

    def _wait(self, next_look: float) -> float:
        wait = max(0.0, next_look - self._clock())
        retry = self._reporter.wait()
        return wait if retry is None else min(wait, retry)

    def _take_look(self) -> bool:
        """Look once; return whether the main server was reached."""
        try:
            report = self._look(self._reporter.note)
        except FedspkError as error:
            _LOG.warning("The look for a new version failed: %s", error)
            return False
        except Exception:  # whatever it is, a device that looks no more could never be cured
            _LOG.exception("The look for a new version met a fault.")
            return False
        self._reporter.note(report)
        return report.failure != "unreachable"
