"""The registry's database: SQLite or PostgreSQL, with its tables brought up to date."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from fedspk.errors import FedspkError
from server.faults import ConflictError, UnavailableError

_BUSY = timedelta(seconds=30)
"""How long a writer waits for another process."""
_CONNECTIONS = 40  # as many as threads that answer requests
_LOCK = 0x66656473706B
"""PostgreSQL's advisory lock for migrations: "fedspk"."""

_MIGRATING = threading.Lock()  # Alembic keeps what it works on in global variables


class Database:
    """Transactions on a database.

    On SQLite, those that write take turns in this process, and take the file's write lock before
    they read: none fails because another came between.

    Raises (all methods):
        UnavailableError: the database cannot be reached, read or written.
        ConflictError: somebody else added the same at the same time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        is_sqlite = engine.dialect.name == "sqlite"
        self._turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite else nullcontext()

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a database and bring its tables up to date; see `Registry.open`."""
        database = cls(_engine(_parsed(url)))
        with _MIGRATING, database.writing() as connection:
            _migrate(connection)
        return database

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that reads."""
        with _explained(self._engine.url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that writes; an error in the block undoes all."""
        writer = self._engine.execution_options(fedspk_writes=True)
        with _explained(self._engine.url), self._turn, writer.begin() as connection:
            yield connection


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # whose words may repeat a password
        raise FedspkError("server.toml: database is not the URL of a database.") from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("postgresql+psycopg", "sqlite"):
        raise FedspkError(
            f"server.toml: database is a URL of {parsed.drivername}://; "
            "use postgresql:// or sqlite:///."
        )
    return parsed


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    try:
        return create_engine(url, pool_pre_ping=True, pool_size=20, max_overflow=20)
    except ImportError as error:
        raise FedspkError(
            "PostgreSQL needs the package psycopg; run `pip install 'fedspk[postgresql]'`."
        ) from error


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise FedspkError("server.toml: database must name a file: sqlite:////srv/registry.sqlite.")
    if not Path(url.database).is_absolute() or url.query:  # else each folder had a registry
        raise FedspkError(
            "server.toml: database must be a whole path without options: "
            "sqlite:////srv/registry.sqlite."
        )
    try:
        # The files beside it, with what is not yet in it, get its mode.
        os.close(os.open(Path(url.database), os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise FedspkError(f"{url.database}: cannot be written ({error.strerror}).") from error
    engine = create_engine(
        url,
        pool_size=40,
        connect_args={"timeout": _BUSY.total_seconds(), "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("fedspk_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))  # it is interpolated
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise FedspkError(
            f"{_named(connection.engine.url)}: was made by a newer fedspk; update this one."
        ) from error


@contextmanager
def _explained(url: URL) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise ConflictError("somebody else has just added the same; look again.") from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise UnavailableError(f"{_named(url)}: the registry cannot be used ({reason}).") from error


def _named(url: URL) -> str:
    """Return what may be told of a URL: a password may stand before the host, or in an option."""
    if url.get_backend_name() == "sqlite":
        return url.database or ""
    port = f":{url.port}" if url.port else ""
    return f"{url.drivername}://{url.host or ''}{port}/{url.database or ''}"
