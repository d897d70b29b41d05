"""The running main server: its socket, its web server, and metadata that never expire.

A thread signs metadata again at the start and once a day, and deletes uploads that nobody
published. Every line of the log is an event with fields (`server.traffic.told`).
"""

from __future__ import annotations

import logging
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from fedspk.errors import FedspkError
from fedspk.signing import is_encrypted
from server import upkeep
from server.connections import Connection, most_connections
from server.faults import ConflictError
from server.service import Service, build_app
from server.traffic import told

log = logging.getLogger("fedspk.server")

RENEWED_EVERY = timedelta(days=1)
_TRIED_AGAIN = timedelta(minutes=1)
_STOPPING_S = 10  # how long a stopping server waits for answers under way


@dataclass(frozen=True)
class Listening:
    """Where the server listens.

    Args:
        host, port: address; port 0 lets the system choose.
        tls_cert, tls_key: PEM files of the certificate chain and its key.
        behind_proxy: whether a proxy in front does TLS.
    """

    host: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None
    behind_proxy: bool = False

    def check(self) -> None:
        """Accept an address that gives no token away.

        Raises:
            FedspkError: it can be reached from elsewhere without TLS, or TLS lacks a file.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise FedspkError("--tls-cert and --tls-key go together; give both or neither.")
        if self.tls_key is not None:
            self._check_key(self.tls_key)
        elif not self.behind_proxy and not _is_loopback(self.host):
            raise FedspkError(
                f"--host {self.host} without TLS would send tokens in the clear; give --tls-cert "
                "and --tls-key, or --behind-proxy where a proxy does TLS."
            )

    def _check_key(self, key: Path) -> None:
        try:
            pem = key.read_bytes()
            # OpenSSL would ask at the terminal.
            if is_encrypted(pem) or b"Proc-Type: 4,ENCRYPTED" in pem:
                raise FedspkError(f"{key}: is encrypted; give a TLS key without a passphrase.")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(str(self.tls_cert), key)
        except OSError as error:  # an SSLError, too
            raise FedspkError(
                f"{self.tls_cert}, {key}: are no certificate and its key in PEM ({error})."
            ) from error

    def bind(self) -> socket.socket:
        """Return a bound socket.

        Raises:
            FedspkError: the address is none, or in use.
        """
        try:
            family, *_, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            bound = socket.socket(family, socket.SOCK_STREAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            raise FedspkError(
                f"--host {self.host} --port {self.port}: cannot be used ({error.strerror})."
            ) from error
        return bound

    def url(self, bound: socket.socket) -> str:
        """Return the address of a bound socket."""
        scheme = "https" if self.tls_cert else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{bound.getsockname()[1]}"


def serve(service: Service, listening: Listening, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, and finish what is under way.

    Args:
        service: what to serve.
        listening: where.
        started: is told the address, once devices can connect.

    Raises:
        FedspkError: the address cannot be used.
    """
    listening.check()
    with listening.bind() as bound, _kept_fresh(service):
        bound.listen(2048)
        server = _Server(
            uvicorn.Config(
                _over_tls(build_app(service)) if listening.behind_proxy else build_app(service),
                http=Connection,
                ws="none",
                limit_concurrency=most_connections(),
                ssl_certfile=listening.tls_cert,
                ssl_keyfile=listening.tls_key,
                proxy_headers=listening.behind_proxy,
                forwarded_allow_ips="*",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_STOPPING_S,
            )
        )
        server.started_at = lambda: started(listening.url(bound))
        # uvicorn raises the signal that stopped it once more.
        before = {number: signal.signal(number, _stop) for number in _SIGNALS}
        try:
            server.run([bound])
        except _StoppedError:
            log.info(told("stopped"))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _over_tls(app: ASGIApp) -> ASGIApp:
    """Return an app to which all requests came by https, whatever the proxy says or does not."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["scheme"] = "https"
        await app(scope, receive, send)

    return answer


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _StoppedError(Exception):
    """A signal asks to stop."""


def _stop(*_: object) -> None:
    raise _StoppedError


class _Server(uvicorn.Server):
    started_at: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_at()


@contextmanager
def _kept_fresh(service: Service) -> Iterator[None]:
    """Keep metadata from expiring while the block runs."""
    stopping = threading.Event()
    thread = threading.Thread(target=_keep_fresh, args=(service, stopping), name="upkeep")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _keep_fresh(service: Service, stopping: threading.Event) -> None:
    wait = timedelta(0)
    while not stopping.wait(wait.total_seconds()):
        try:
            renew(service)
            wait = RENEWED_EVERY
        except ConflictError:  # somebody is publishing
            wait = _TRIED_AGAIN
        except FedspkError as error:
            log.error(told("renewal failed", reason=error))
            wait = RENEWED_EVERY / 24
        except Exception:
            log.exception("renewal failed")
            wait = RENEWED_EVERY / 24


def renew(service: Service) -> None:
    """Sign again what would expire, with the keys at hand, and delete forgotten uploads.

    Raises:
        FedspkError: the key of snapshot or timestamp is missing, or nothing can be written.
    """
    service.uploads.remove_old(service.clock())
    for each in upkeep.renew(service.repository, service.signers):
        if each.renewed:
            log.info(told("signed again", role=each.role, until=each.expires))
        elif each.lacking:
            log.warning(told("not signed again", role=each.role, reason=each.lacking))


def log_to_stderr() -> None:
    """Write the log's lines to standard error, with time (UTC) and level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("fedspk.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class _Formatter(logging.Formatter):
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"
    converter = staticmethod(time.gmtime)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
