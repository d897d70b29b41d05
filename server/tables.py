"""The registry's tables; `migrations` makes and changes them in a database.

No token is kept, only its hash (`server.tokens`). Times are UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    column,
)


class UtcTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC without a zone: SQLite knows none."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: Dialect) -> datetime | None:
        """Return a time as it is kept."""
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _: Dialect) -> datetime | None:
        """Return a kept time."""
        return value and value.replace(tzinfo=UTC)


metadata = MetaData()

operators = Table(
    "operators",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("added_at", UtcTime, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("secret_hash", String(64), primary_key=True),
    Column(
        "operator", String(64), ForeignKey("operators.name", ondelete="CASCADE"), nullable=False
    ),
    Column("expires_at", UtcTime, nullable=False),
)

# A device is invited by name; registering, it brings its own id and key. `signed_ms` is the time
# of its last accepted request: none with that time or an earlier one is accepted again.
devices = Table(
    "devices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("token_expires_at", UtcTime, nullable=False),
    Column("device", String(32), unique=True),
    Column("public_key", String(64)),
    Column("invited_at", UtcTime, nullable=False),
    Column("registered_at", UtcTime),
    Column("revoked_at", UtcTime),
    Column("signed_ms", BigInteger),
    Column("last_seen", UtcTime),
    Column("reported_at", UtcTime),
    Column("version", Integer),
    Column("content_hash", String(64)),
    Column("state", String(16)),
    Column("failure", String(16)),
    Column("attempted", Integer),
    Column("client", String(32)),
    Index(
        "one_device_of_a_name",
        "name",
        unique=True,
        sqlite_where=column("revoked_at").is_(None),
        postgresql_where=column("revoked_at").is_(None),
    ),
    Index("devices_by_version", "version", "state"),
)
