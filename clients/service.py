"""The running device: answers the programs of its machine, and follows its main server.

Up to the moment when a new version takes over, and from then on, every request is answered: what an
update costs is spent in another process, of low priority.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from clients import systemd
from clients.answers import device_status
from clients.desk import Desk
from clients.followed import read_server
from clients.follower import Follower
from clients.recogniser import Recogniser
from clients.registration import link_of
from clients.reporting import Reporter
from clients.schedule import Backoff, Schedule
from clients.socket_server import UnixConnection, serving
from clients.update_process import UpdateEndedError, UpdateProcess
from clients.updater import DownloadDueError, Updater

if TYPE_CHECKING:
    from clients.vault import Vault
    from fedspk.api import Report

SOCKET = "fedspk.sock"
"""The socket's name in the device's folder."""

_WAKE_S = 1.0  # a signal may come just before the wait for it begins
_HEALTH_TIMEOUT_S = 20.0
_GRACE_S = 5.0  # for a request to the main server when the service ends


def run_service(
    vault: Vault, path: Path, poll_s: float, stop: threading.Event, draw: random.Random
) -> None:
    """Serve until `stop` is set.

    Args:
        vault: the device's.
        path: the socket's file.
        poll_s: seconds between two looks for a new version.
        stop: ends the service.
        draw: the source of chance for when to look.

    Raises:
        FedspkError: the vault or the model cannot be read, or another process serves there.
    """
    recogniser = Recogniser(vault)
    recogniser.follow()  # a model that does not load is told now, not to who asks first
    desk = Desk(recogniser, lambda: device_status(vault, recogniser.versions))
    with (
        serving(path, desk.routes()) as server,
        _following(vault, recogniser, poll_s, draw) as is_following,
    ):
        systemd.notify("READY=1")
        period = systemd.watchdog_s()
        while not stop.wait(period / 2 if period else _WAKE_S):
            if period and server.is_alive() and is_following() and _answers(path):
                systemd.notify("WATCHDOG=1")
        systemd.notify("STOPPING=1")


@contextmanager
def _following(
    vault: Vault, recogniser: Recogniser, poll_s: float, draw: random.Random
) -> Iterator[Callable[[], bool]]:
    """Follow the device's main server, if it has one, until the block ends.

    Yields:
        What says whether that goes well.
    """
    if read_server(vault) is None:
        yield lambda: True
        return
    process = UpdateProcess(vault)
    updater = Updater(vault, recogniser)

    def look(tell: Callable[[Report], None]) -> Report:
        try:
            return updater.look().report()
        except DownloadDueError as due:
            version = due.version
        try:
            report = process.run(tell)
        except UpdateEndedError as error:
            report = updater.give_up(version, error).report()
        recogniser.follow()
        return report

    reporter = Reporter(lambda: link_of(vault), Backoff(draw))
    follower = Follower(look, reporter, Schedule(poll_s, draw))
    # a daemon: a main server that does not answer is not waited for, and a kill is safe anywhere
    thread = threading.Thread(target=follower.run, name="follower", daemon=True)
    thread.start()
    try:
        yield lambda: thread.is_alive() and not follower.hangs()
    finally:
        follower.stop()
        process.stop()
        thread.join(_GRACE_S)


def _answers(path: Path) -> bool:
    """Say whether the socket answers a request."""
    connection = UnixConnection(path, _HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
