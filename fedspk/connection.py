"""HTTP to a main server: bounded in bytes and time, every fault in words.

Nothing here trusts what the server says: `fedspk.remote` checks it.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NoReturn, Self
from urllib.parse import urlsplit

import urllib3
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    HTTPError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as TooLate
from urllib3.response import BaseHTTPResponse, HTTPResponse

from fedspk.errors import FedspkError

_CHUNK = 256 * 1024
_LONGEST_ANSWER = 64 * 1024
_TIMEOUT = urllib3.Timeout(connect=10.0, read=30.0)
_RETRIES = urllib3.Retry(
    total=2,
    redirect=0,
    status=0,
    backoff_factor=0.3,
    raise_on_redirect=False,
    respect_retry_after_header=False,  # else urllib3 reads such an answer to its end, however slow
)
_ANSWER_S = 30.0  # for all headers of an answer together
# A server that sends less than so much in so long is given up: it could hold a device for ever.
_WINDOW_S = 60.0
_WINDOW_BYTES = 60 * 1024


class VersionsUnreachable(FedspkError):  # noqa: N818, it passes
    """The main server cannot be reached or does not do its part: try again later."""


class _Deadline:
    """Closes a connection's socket when its block takes too long, however little comes at a time.

    Raises:
        TimeoutError: it did.
    """

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self._is_over = False
        self._timer = threading.Timer(_ANSWER_S, self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._is_over:
            raise TimeoutError("the answer takes too long")

    def _end(self) -> None:
        self._is_over = True
        if self._connection.sock is not None:
            _shut(self._connection.sock)


class _Pace:
    """Shuts the socket through which a body comes when too little of it comes in a window.

    A thread of its own looks, as a read may last for ever: what comes need not be the body's.
    """

    def __init__(self, through: socket.socket | None) -> None:
        self.is_too_slow = False
        self._socket = through
        self._came = 0
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pace", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    def count(self, length: int) -> None:
        """Take note that so many bytes of the body have come."""
        self._came += length

    def _watch(self) -> None:
        seen = 0
        while not self._is_done.wait(_WINDOW_S):
            came = self._came
            if came - seen < _WINDOW_BYTES:
                self.is_too_slow = True
                if self._socket is not None:
                    _shut(self._socket)
                return
            seen = came


def _shut(through: socket.socket) -> None:
    """Let whoever reads from a socket find its end."""
    with suppress(OSError):
        # not TLS's own, which would change the object that another thread reads from
        socket.socket.shutdown(through, socket.SHUT_RDWR)


class _Connection(HTTPConnection):
    answering: socket.socket | None = None
    """Through which the last answer comes, even if this connection has let go of it."""

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
        self.answering = self.sock
        with _Deadline(self):
            return super().getresponse()


class _TLSConnection(_Connection, HTTPSConnection):
    def connect(self) -> None:
        with _Deadline(self):
            super().connect()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class Connection(FetcherInterface):
    """Requests to one server, over connections that are kept open.

    Args:
        address: the server's base URL, http or https.
        ca: certificates to trust in place of the system's, in PEM.

    Raises:
        FedspkError: the address is none, or the certificates cannot be read.
        VersionsUnreachable (all methods): the server is away, too slow, or not who it should be.
    """

    def __init__(self, address: str, ca: Path | None = None) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FedspkError(f"{address!r} is no server's address; write https://HOST:PORT.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise FedspkError(
                f"the server's address must be https://HOST:PORT alone, not more: {parts.hostname}."
            )
        self.address = address.rstrip("/")
        self.clock_error: timedelta | None = None
        context = _context(ca) if parts.scheme == "https" else None
        self._pool = urllib3.PoolManager(ssl_context=context)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[BaseHTTPResponse]:
        """Yield the answer to a request, whatever its status; read it with `chunks`."""
        try:
            response = self._pool.request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                decode_content=False,
                timeout=_TIMEOUT,
                retries=_RETRIES,
            )
        except HTTPError as error:
            self._give_up(error)
        self._compare_clocks(response.headers.get("Date"))
        is_whole = False
        try:
            yield response
            is_whole = True
        finally:
            if is_whole:
                response.release_conn()
            else:
                response.close()

    def send(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        """Send a body, once, and return status and answer; of a long one no more than 64 KiB."""
        try:
            response = self._pool.request(
                method,
                url,
                body=io.BytesIO(body),  # sent in pieces: the timeout is that of each
                headers={**headers, "Content-Length": str(len(body))},
                preload_content=False,
                decode_content=False,
                timeout=_TIMEOUT,
                retries=False,
            )
            try:
                answer = bytearray()
                for chunk in self.chunks(response):
                    answer += chunk
                    if len(answer) >= _LONGEST_ANSWER:
                        break
                return response.status, bytes(answer[:_LONGEST_ANSWER])
            finally:
                response.close()
        except HTTPError as error:
            self._give_up(error)

    def chunks(self, response: BaseHTTPResponse) -> Iterator[bytes]:
        """Yield the body as it comes."""
        connection = response.connection
        with _Pace(connection.answering if isinstance(connection, _Connection) else None) as pace:
            try:
                while chunk := response.read1(_CHUNK):
                    pace.count(len(chunk))
                    yield chunk
            except HTTPError as error:
                if not pace.is_too_slow:
                    self._give_up(error)
        if pace.is_too_slow:
            raise VersionsUnreachable(f"{self.address}: sends too slowly; try later.")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a whole body of at most `max_length` bytes.

        Raises:
            DownloadHTTPError: the status is not 200.
        """
        body = bytearray()
        with self.get(url) as response:
            if response.status != 200:
                raise DownloadHTTPError(f"{url}: status {response.status}", response.status)
            for chunk in self.chunks(response):
                body += chunk
                if len(body) > max_length:
                    raise VersionsUnreachable(
                        f"{url}: is longer than {max_length} bytes; the server is not in order."
                    )
        return bytes(body)

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self.get(url) as response:
            if response.status != 200:
                raise DownloadHTTPError(f"{url}: status {response.status}", response.status)
            yield from self.chunks(response)

    def _compare_clocks(self, date: str | None) -> None:
        try:
            told = parsedate_to_datetime(date or "")
        except ValueError:
            return
        if told.tzinfo is not None:
            self.clock_error = datetime.now(UTC) - told

    def _give_up(self, error: HTTPError) -> NoReturn:
        raise VersionsUnreachable(f"{self.address}: {_in_words(error)}.") from error


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise FedspkError(f"{ca}: cannot be read as certificates in PEM ({error}).") from error


def _in_words(error: HTTPError) -> str:
    reason = error.reason if isinstance(error, MaxRetryError) else error
    if isinstance(reason, SSLError):
        return _certificate_in_words(reason)
    if isinstance(reason, NameResolutionError):
        return "no host of this name is known; check the address and the network"
    if isinstance(reason, TooLate) and not isinstance(reason, NewConnectionError):
        return "does not answer in time; try again later"
    # urllib3 puts the cause of a connection that was lost while it sent among the arguments
    causes = [reason.__cause__, *reason.args] if reason is not None else []
    cause = next((each for each in causes if isinstance(each, OSError)), None)
    if isinstance(cause, TimeoutError):
        return "takes too long; try again later"
    why = cause.strerror if cause is not None and cause.strerror else "it broke off"
    return f"no connection ({why}); try again later"


def _certificate_in_words(error: SSLError) -> str:
    cause = error.args[0] if error.args else None
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return f"TLS fails ({error})"
    why = cause.verify_message
    if cause.verify_code in _DATES:
        return f"its certificate is not accepted ({why}); check this machine's clock"
    return (
        f"its certificate is not accepted ({why}); that of a private authority is given with --ca"
    )


_DATES = (9, 10)
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
