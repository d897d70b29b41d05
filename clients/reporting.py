"""Reports: the main server learns which version a device runs, and nothing else.

A device that never registered is silent. A report that does not arrive is tried again, later and
later; the latest state alone is worth sending.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from clients.schedule import Backoff
from clients.server_link import ServerLink
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from fedspk.api import Report

_LOG = logging.getLogger(__name__)

EVERY = 24
"""After so many checks without a change a report is sent all the same: the device is alive."""


class Reporter:
    """Keeps the main server informed.

    Args:
        link: returns the link to the main server that knows the device, None if none does.
        backoff: how long to wait after a report that did not arrive.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        link: Callable[[], ServerLink | None],
        backoff: Backoff,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._backoff = backoff
        self._clock = clock
        self._told: Report | None = None
        self._pending: Report | None = None
        self._unchanged = 0
        self._next_try = clock()

    def note(self, report: Report) -> None:
        """Take the device's present state; it is sent if it is news, or after `EVERY` times."""
        self._unchanged += 1
        if report == self._told and self._unchanged < EVERY:
            self._pending = None
            return
        self._pending = report
        self.send()

    def send(self) -> None:
        """Send what is pending, unless it is too early for another try."""
        if self._pending is None or self._clock() < self._next_try:
            return
        try:
            link = self._link()
            if link is not None:
                link.report(self._pending)
        except Exception as error:  # the look for new versions goes on, whatever it is
            self._next_try = self._clock() + self._backoff.failed()
            is_known = isinstance(error, FedspkError)
            _LOG.warning("The report to the main server failed: %s", error, exc_info=not is_known)
            return
        self._backoff.succeeded()
        # what no server was told is news to the one that the device registers with
        self._told = self._pending if link is not None else None
        self._pending, self._unchanged = None, 0

    def wait(self) -> float | None:
        """Return the seconds until the next try; None if there is nothing to send."""
        return None if self._pending is None else max(0.0, self._next_try - self._clock())
