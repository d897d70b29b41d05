"""Signed requests of a device to its main server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from fedspk.api import API, Registration, Report, SignedRequest
from fedspk.connection import Connection, VersionsUnreachable
from fedspk.errors import FedspkError
from fedspk.secagg.keys import Identity

_LONGEST_REASON = 300


class ServerRefusedError(FedspkError):
    """The main server said no.

    Args:
        message: the sentence for the user.
        status: the HTTP status of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServerLink:
    """What a device says to one main server.

    Args:
        address: the server's base URL.
        identity: what the device signs with.
        ca: certificates to trust in place of the system's, in PEM.
        clock: seconds since 1970.

    Raises:
        FedspkError: the address is none, or `ca` cannot be read.
        VersionsUnreachable (all methods): there was no answer, or the server has a fault; try again
            later.
        ServerRefusedError (all methods): the server does not take the message.
    """

    def __init__(
        self,
        address: str,
        identity: Identity,
        ca: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = Connection(address, ca)
        self._identity = identity
        self._clock = clock

    def register(self, registration: Registration) -> None:
        """Give the server the device's public key, by a one-time token."""
        self._send("POST", "/devices", registration)

    def report(self, report: Report) -> None:
        """Tell the server what the device runs."""
        self._send("PUT", f"/devices/{self._identity.device}/report", report)

    def _send(self, method: str, path: str, message: Registration | Report) -> None:
        body = message.to_json()
        # A proxy before the server may put a prefix before the path; the server does not see it.
        signed = SignedRequest.sign(
            self._identity, method, API + path, body, round(1000 * self._clock())
        )
        address = self._connection.address
        headers = {"Authorization": signed.header(), "Content-Type": "application/json"}
        status, answer = self._connection.send(method, address + API + path, body, headers)
        if status >= 500:
            raise VersionsUnreachable(
                f"{address}: the main server has a fault (HTTP {status}); try again later."
            )
        if not 200 <= status < 300:
            raise ServerRefusedError(
                f"{address}: the main server refuses: {_reason(answer) or f'HTTP {status}'}.",
                status,
            )


def _reason(answer: bytes) -> str:
    """Return what the server said, as one printable line; empty if it said nothing of use."""
    try:
        said = json.loads(answer)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    printable = "".join(each if each.isprintable() else " " for each in str(said))
    return printable[:_LONGEST_REASON].rstrip(". ")
