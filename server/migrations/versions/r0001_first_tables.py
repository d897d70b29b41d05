"""Operators, their sessions, and devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "operators",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("added_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("secret_hash", sa.String(64), primary_key=True),
        sa.Column(
            "operator",
            sa.String(64),
            sa.ForeignKey("operators.name", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("token_expires_at", sa.DateTime, nullable=False),
        sa.Column("device", sa.String(32), unique=True),
        sa.Column("public_key", sa.String(64)),
        sa.Column("invited_at", sa.DateTime, nullable=False),
        sa.Column("registered_at", sa.DateTime),
        sa.Column("revoked_at", sa.DateTime),
        sa.Column("signed_ms", sa.BigInteger),
        sa.Column("last_seen", sa.DateTime),
        sa.Column("reported_at", sa.DateTime),
        sa.Column("version", sa.Integer),
        sa.Column("content_hash", sa.String(64)),
        sa.Column("state", sa.String(16)),
        sa.Column("failure", sa.String(16)),
        sa.Column("attempted", sa.Integer),
        sa.Column("client", sa.String(32)),
    )
    present = sa.text("revoked_at IS NULL")
    op.create_index(
        "one_device_of_a_name",
        "devices",
        ["name"],
        unique=True,
        sqlite_where=present,
        postgresql_where=present,
    )
    op.create_index("devices_by_version", "devices", ["version", "state"])


def downgrade() -> None:
    """Remove the tables."""
    for table in ("devices", "sessions", "operators"):
        op.drop_table(table)
