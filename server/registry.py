"""The register of devices and operators, in SQLite or PostgreSQL.

A device comes in three steps: an operator invites it by a name and hands its owner a one-time
token; with the token it registers the id and the Ed25519 key that it made itself; from then on it
reports what it runs, each report signed, until it is revoked.

Every method is one transaction of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    case,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from fedspk.api import Registration, Report
from fedspk.errors import FedspkError
from fedspk.secagg.keys import DeviceRegister
from server.audit import AuditLog
from server.database import Database
from server.faults import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnauthenticatedError,
)
from server.records import (
    ROLES,
    DeviceRecord,
    DeviceStage,
    Fleet,
    Invitation,
    Operator,
    Outline,
    StateCounts,
)
from server.settings import Settings
from server.tables import devices, operators, sessions
from server.tokens import hashed, new_token

Clock = Callable[[], datetime]

INVITATION = timedelta(days=7)
"""An unused one-time token counts for so long."""
SESSION = timedelta(hours=12)
"""A login at the page counts for so long."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_REPORT = tuple(Report.model_fields)


def utc_now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


class Registry:
    """Devices and operators.

    Raises (all methods):
        UnavailableError: the database cannot be reached, read or written.
        ConflictError: somebody else added the same at the same time.
    """

    def __init__(
        self, database: Database, clock: Clock = utc_now, audit: AuditLog | None = None
    ) -> None:
        self._database = database
        self._clock = clock
        self._audit = audit

    @classmethod
    def of(cls, folder: Path, clock: Clock = utc_now) -> Self:
        """Open the registry of a repository's folder, whose audit log it keeps; see `open`."""
        folder = Path(folder)
        return cls.open(Settings.read(folder).database, clock, AuditLog(folder / "audit.jsonl"))

    @classmethod
    def open(cls, url: str, clock: Clock = utc_now, audit: AuditLog | None = None) -> Self:
        """Open a database and bring its tables up to date.

        Args:
            url: `sqlite:///FILE` or `postgresql://...`.
            clock: tells the time in UTC.
            audit: gets a line for every change of devices and operators, before it is committed.

        Raises:
            FedspkError: the URL is none, its driver is missing, or the database is newer than
                this version of fedspk.
        """
        return cls(Database.open(url), clock, audit)

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def ping(self) -> None:
        """Ask the database for nothing, to see whether it answers."""
        with self._database.reading() as connection:
            connection.execute(select(1))

    # Operators and their sessions

    def add_operator(self, name: str, role: str, who: str | None = None) -> str:
        """Add an operator and return his token, which is shown this once.

        Args:
            name: of the operator.
            role: one of `ROLES`.
            who: does this, for the audit log; None for the user of this process.

        Raises:
            FedspkError: the name is not 1 to 64 letters, digits, '.', '_' or '-', or the role is
                unknown.
            ConflictError: there is such an operator.
        """
        _check_name("operator", name)
        if role not in ROLES:
            raise FedspkError(f"role {role!r} is unknown; choose one of {', '.join(ROLES)}.")
        token = new_token()
        with self._database.writing() as connection:
            if connection.execute(select(exists().where(operators.c.name == name))).scalar():
                raise ConflictError(f"operator {name} is there already; remove it first.")
            connection.execute(
                insert(operators).values(
                    name=name, role=role, token_hash=hashed(token), added_at=self._clock()
                )
            )
            self._note("add-operator", who, operator=name, role=role)
        return token

    def remove_operator(self, name: str, who: str | None = None) -> None:
        """Remove an operator; his token and his sessions count no more; `who` does this.

        Raises:
            NotFoundError: there is no such operator.
        """
        with self._database.writing() as connection:
            if not connection.execute(delete(operators).where(operators.c.name == name)).rowcount:
                raise NotFoundError(f"there is no operator {name[:80]!r}.")
            self._note("remove-operator", who, operator=name)

    def operators(self) -> list[Operator]:
        """Return all operators by name."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(operators.c.name, operators.c.role).order_by(operators.c.name)
            )
            return [Operator(*row) for row in rows]

    def operator(self, token: str) -> Operator | None:
        """Return whose token this is."""
        with self._database.reading() as connection:
            row = connection.execute(
                select(operators.c.name, operators.c.role).where(
                    operators.c.token_hash == hashed(token)
                )
            ).one_or_none()
        return Operator(*row) if row else None

    def open_session(self, operator: Operator) -> str:
        """Return the secret of a new session, for the page's cookie; it counts for `SESSION`.

        Raises:
            UnauthenticatedError: the operator has been removed.
        """
        secret = new_token()
        now = self._clock()
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            known = select(exists().where(operators.c.name == operator.name))
            if not connection.execute(known).scalar():
                raise UnauthenticatedError(f"operator {operator.name} has been removed.")
            connection.execute(
                insert(sessions).values(
                    secret_hash=hashed(secret), operator=operator.name, expires_at=now + SESSION
                )
            )
        return secret

    def session(self, secret: str) -> Operator | None:
        """Return whose session this is; None if it is nobody's, has expired or was closed."""
        with self._database.reading() as connection:
            row = connection.execute(
                select(operators.c.name, operators.c.role)
                .join(sessions, sessions.c.operator == operators.c.name)
                .where(
                    sessions.c.secret_hash == hashed(secret),
                    sessions.c.expires_at > self._clock(),
                )
            ).one_or_none()
        return Operator(*row) if row else None

    def close_session(self, secret: str) -> None:
        """End a session, if it is one."""
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.secret_hash == hashed(secret)))

    # Devices come and go

    def invite(
        self, name: str, lifetime: timedelta = INVITATION, who: str | None = None
    ) -> Invitation:
        """Return a one-time token with which one device may register under a name.

        An earlier token for a device of that name that has not registered counts no more.

        Args:
            name: of the device.
            lifetime: how long the token counts.
            who: does this, for the audit log; None for the user of this process.

        Raises:
            FedspkError: the name is not 1 to 64 letters, digits, '.', '_' or '-'.
            ConflictError: a device of that name has registered.
        """
        _check_name("device", name)
        token, now = new_token(), self._clock()
        fields = {
            "token_hash": hashed(token),
            "invited_at": now,
            "token_expires_at": now + lifetime,
        }
        with self._database.writing() as connection:
            present = devices.c.name == name, devices.c.revoked_at.is_(None)
            row = _row(connection, *present, lock=True)
            if row is None:
                connection.execute(insert(devices).values(name=name, **fields))
            elif row["device"] is None:
                connection.execute(
                    update(devices).where(devices.c.id == row["id"]).values(**fields)
                )
            else:
                raise ConflictError(f"device {name} is registered already; revoke it first.")
            self._note("invite", who, device=name)
        return Invitation(name, token, now + lifetime)

    def register(self, registration: Registration, signed_ms: int) -> tuple[DeviceRecord, bool]:
        """Register a device; return its record, and whether this is new.

        A device that registers again with the same token, id and key has lost the reply.

        Args:
            registration: signed with the key in it, as the caller has checked.
            signed_ms: the time in the signature.

        Raises:
            ForbiddenError: the token is unknown, used or expired, or the device is revoked.
            ConflictError: another device has this id.
        """
        now = self._clock()
        with self._database.writing() as connection:
            row = _row(connection, devices.c.token_hash == hashed(registration.token), lock=True)
            if row is None:
                raise ForbiddenError("the one-time token is unknown; ask for a new one.")
            if row["revoked_at"] is not None:
                raise ForbiddenError("this device has been revoked.")
            if row["device"] is not None:
                if (row["device"], row["public_key"]) != (
                    registration.device,
                    registration.public_key,
                ):
                    raise ForbiddenError(
                        "the one-time token was used by another device; ask for a new one."
                    )
                return _record(row), False
            if row["token_expires_at"] <= now:
                raise ForbiddenError("the one-time token has expired; ask for a new one.")
            if _row(connection, devices.c.device == registration.device) is not None:
                raise ConflictError(
                    f"device {registration.device} is known already; set the device up anew."
                )
            changed = connection.execute(
                update(devices)
                .where(devices.c.id == row["id"])
                .values(
                    device=registration.device,
                    public_key=registration.public_key,
                    registered_at=now,
                    last_seen=now,
                    signed_ms=signed_ms,
                )
                .returning(devices)
            )
            self._note("register", f"device {registration.device}", device=row["name"])
            return _record(changed.mappings().one()), True

    def revoke(self, device: str, who: str | None = None) -> DeviceRecord:
        """Revoke a device by its id or its name; its requests are refused from now on.

        Args:
            device: which.
            who: does this, for the audit log; None for the user of this process.

        Raises:
            NotFoundError: there is no such device.
            ConflictError: it is revoked already.
        """
        with self._database.writing() as connection:
            # An id names one device; of a name's devices the latest counts.
            row = _row(connection, devices.c.device == device, lock=True) or _row(
                connection, devices.c.name == device, lock=True
            )
            if row is None:
                raise NotFoundError(f"there is no device {device[:80]!r}.")
            if row["revoked_at"] is not None:
                raise ConflictError(f"device {device} is revoked already.")
            changed = connection.execute(
                update(devices)
                .where(devices.c.id == row["id"])
                .values(revoked_at=self._clock())
                .returning(devices)
            )
            self._note("revoke", who, device=row["name"], id=row["device"])
            return _record(changed.mappings().one())

    # What devices say

    def public_key(self, device: str) -> bytes:
        """Return a device's public key (32 bytes).

        Raises:
            UnauthenticatedError: there is no such device.
            ForbiddenError: it is revoked.
        """
        with self._database.reading() as connection:
            row = connection.execute(
                select(devices.c.public_key, devices.c.revoked_at).where(devices.c.device == device)
            ).one_or_none()
        if row is None:
            raise UnauthenticatedError("this device is not registered here.")
        if row.revoked_at is not None:
            raise ForbiddenError("this device has been revoked.")
        return bytes.fromhex(row.public_key)

    def report(self, device: str, report: Report, signed_ms: int) -> None:
        """Keep a device's report, if it is signed later than all that it sent before.

        Raises:
            UnauthenticatedError: it is not, or there is no such device.
            ForbiddenError: the device is revoked.
        """
        now = self._clock()
        # One statement judges and writes, so that of two equal requests one is refused.
        accepted = (
            update(devices)
            .where(
                devices.c.device == device,
                devices.c.revoked_at.is_(None),
                devices.c.signed_ms < signed_ms,
            )
            .values(**report.model_dump(), signed_ms=signed_ms, last_seen=now, reported_at=now)
        )
        with self._database.writing() as connection:
            is_accepted = bool(connection.execute(accepted).rowcount)
        if not is_accepted:
            self.public_key(device)
            raise UnauthenticatedError(
                "the request was signed no later than the last one of this device; sign it anew."
            )

    # The fleet

    def devices(
        self,
        state: DeviceStage | None = None,
        version: int | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[DeviceRecord]:
        """Return devices by name.

        Args:
            state: only those in it.
            version: only those that reported this version in use.
            limit: at most so many.
            offset: leaving out so many at first.
        """
        query = _chosen(select(devices), state, version)
        query = query.order_by(devices.c.name, devices.c.id).limit(limit).offset(offset)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def count(self, state: DeviceStage | None = None, version: int | None = None) -> int:
        """Return how many devices `devices` would return without a limit."""
        query = _chosen(select(func.count()).select_from(devices), state, version)
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def outlines(self) -> list[Outline]:
        """Return all devices in short, by name in any case."""
        stage = case(
            (devices.c.revoked_at.is_not(None), "revoked"),
            (devices.c.device.is_(None), "invited"),
            else_="registered",
        )
        query = select(
            devices.c.id,
            devices.c.name,
            stage,
            devices.c.device,
            devices.c.last_seen,
            devices.c.state,
            devices.c.version,
        ).order_by(func.lower(devices.c.name), devices.c.id)
        with self._database.reading() as connection:
            return [Outline(*row) for row in connection.execute(query)]

    def records(self, rows: Sequence[int]) -> list[DeviceRecord]:
        """Return the devices of some outlines, in that order, as far as they are still there."""
        query = select(devices).where(devices.c.id.in_(rows))
        with self._database.reading() as connection:
            found = {row["id"]: _record(row) for row in connection.execute(query).mappings()}
        return [found[row] for row in rows if row in found]

    def device(self, device: str) -> DeviceRecord:
        """Return one device by its id.

        Raises:
            NotFoundError: there is no such device.
        """
        with self._database.reading() as connection:
            row = _row(connection, devices.c.device == device)
        if row is None:
            raise NotFoundError(f"there is no device {device[:80]!r}.")
        return _record(row)

    def fleet(self) -> Fleet:
        """Return how many devices have come how far."""
        reports = (
            select(devices.c.version, devices.c.state, func.count())
            .where(devices.c.revoked_at.is_(None), devices.c.reported_at.is_not(None))
            .group_by(devices.c.version, devices.c.state)
        )
        stages = (
            (*_in_stage("registered"), devices.c.reported_at.is_(None)),
            _in_stage("invited"),
            _in_stage("revoked"),
            _in_stage("registered"),
        )
        others = select(*(func.count().filter(*each) for each in stages)).select_from(devices)
        counts: dict[int | None, dict[str, int]] = {None: {}}
        with self._database.reading() as connection:
            unreported, invited, revoked, total = map(int, connection.execute(others).one())
            for version, state, count in connection.execute(reports):
                counts.setdefault(version, {})[state] = count
        from_file = StateCounts(**counts.pop(None))
        versions = sorted((version, each) for version, each in counts.items() if version)
        return Fleet(
            versions={version: StateCounts(**each) for version, each in versions},
            from_file=from_file,
            unreported=unreported,
            invited=invited,
            revoked=revoked,
            total=total,
        )

    def device_register(self) -> DeviceRegister:
        """Return the keys of all registered devices, as secure aggregation needs them."""
        query = select(devices.c.device, devices.c.public_key).where(*_in_stage("registered"))
        with self._database.reading() as connection:
            return DeviceRegister(
                {row[0]: bytes.fromhex(row[1]) for row in connection.execute(query)}
            )

    def _note(self, action: str, who: str | None, **details: Any) -> None:
        if self._audit:
            self._audit.note(action, who, **details)


def _check_name(of: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise FedspkError(
            f"{name[:80]!r} is no name for a {of}; use 1 to 64 letters, digits, '.', '_' or '-'."
        )


def _row(connection: Connection, *where: Any, lock: bool = False) -> RowMapping | None:
    query = select(devices).where(*where).order_by(devices.c.id.desc()).limit(1)
    if lock:
        query = query.with_for_update()
    return connection.execute(query).mappings().first()


def _in_stage(stage: DeviceStage) -> tuple[Any, ...]:
    if stage == "revoked":
        return (devices.c.revoked_at.is_not(None),)
    is_known = (
        devices.c.device.is_not(None) if stage == "registered" else devices.c.device.is_(None)
    )
    return devices.c.revoked_at.is_(None), is_known


def _chosen(query: Select[Any], state: DeviceStage | None, version: int | None) -> Select[Any]:
    if state is not None:
        query = query.where(*_in_stage(state))
    if version is not None:
        query = query.where(devices.c.version == version)
    return query


def _record(row: RowMapping) -> DeviceRecord:
    stage: DeviceStage = "registered" if row["device"] else "invited"
    fields = {name: row[name] for name in DeviceRecord.model_fields if name in row}
    report = Report(**{name: row[name] for name in _REPORT}) if row["reported_at"] else None
    return DeviceRecord(
        **{**fields, "state": "revoked" if row["revoked_at"] else stage, "report": report}
    )
