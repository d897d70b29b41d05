"""The register of devices and operators, on SQLite and on PostgreSQL."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from main_server import SigningDevice, a_report
from postgres import PROGRAMS, postgres

from fedspk.errors import FedspkError
from fedspk.secagg.keys import DeviceRegister
from server import tables
from server.audit import AuditLog
from server.database import Database
from server.faults import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from server.records import Operator
from server.registry import INVITATION, SESSION, Registry

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if None in PROGRAMS:
        pytest.skip("no PostgreSQL on this machine")
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database is."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.sqlite'}"
    import psycopg

    server: str = request.getfixturevalue("postgres_url")
    name = f"t{abs(hash(str(tmp_path)))}"
    with psycopg.connect(server + "postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server + name


@pytest.fixture
def registry(url: str, clock: Clock, tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(url, clock, AuditLog(tmp_path / "audit.jsonl"))
    yield opened
    opened.close()


def admit(registry: Registry, number: int, name: str = "") -> SigningDevice:
    """Invite and register a device."""
    device = SigningDevice(number)
    token = registry.invite(name or f"device-{number}").token
    registry.register(device.registration(token), signed_ms=1)
    return device


def test_the_tables_in_the_code_are_those_that_migrations_make(url: str) -> None:
    database = Database.open(url)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    database.close()


def test_a_database_of_a_newer_fedspk_is_refused(url: str) -> None:
    database = Database.open(url)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(FedspkError, match="newer fedspk"):
        Registry.open(url)


def test_two_processes_may_open_a_new_database_at_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Registry.open(url), range(4)))
    for each in opened:
        each.ping()
        each.close()


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    registry = Registry.open(f"sqlite:///{tmp_path / 'registry.sqlite'}")
    registry.add_operator("ann", "viewer")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("registry.sqlite") == 0o600
    assert set(modes.values()) <= {0o600}
    registry.close()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://h/d", "use postgresql:// or sqlite:///"),
        ("sqlite://", "must name a file"),
        ("no url", "is not the URL of a database"),
        ("sqlite:////nowhere/at/all.sqlite", "cannot be written"),
        ("sqlite:///registry.sqlite", "must be a whole path"),
        ("sqlite:////srv/registry.sqlite?timeout=abc", "without options"),
    ],
)
def test_a_wrong_url_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(FedspkError, match=complaint):
        Registry.open(url)


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    for url in (
        "postgresql://fedspk:hidden@127.0.0.1:1/fedspk",
        "postgresql://127.0.0.1:1/fedspk?user=fedspk&password=hidden",
    ):
        with pytest.raises(UnavailableError) as caught:
            Registry.open(url)
        assert "127.0.0.1" in str(caught.value)
        assert "hidden" not in str(caught.value)


# Operators


def test_an_operator_is_known_by_his_token_until_he_is_removed(registry: Registry) -> None:
    token = registry.add_operator("ann", "operator")
    assert token.startswith("fedspk_")
    assert registry.operator(token) == Operator("ann", "operator")
    assert registry.operator(token[:-1]) is None
    assert registry.operators() == [Operator("ann", "operator")]
    registry.remove_operator("ann")
    assert registry.operator(token) is None
    with pytest.raises(NotFoundError):
        registry.remove_operator("ann")


def test_an_operator_has_one_name_and_a_known_role(registry: Registry) -> None:
    registry.add_operator("ann", "viewer")
    with pytest.raises(ConflictError, match="there already"):
        registry.add_operator("ann", "operator")
    with pytest.raises(FedspkError, match="role 'boss' is unknown"):
        registry.add_operator("bob", "boss")
    with pytest.raises(FedspkError, match="no name"):
        registry.add_operator("b/b", "viewer")


def test_a_session_counts_until_it_is_closed_or_too_old(registry: Registry, clock: Clock) -> None:
    ann = Operator("ann", "viewer")
    registry.add_operator("ann", "viewer")
    first, second = registry.open_session(ann), registry.open_session(ann)
    assert registry.session(first) == ann
    registry.close_session(first)
    assert registry.session(first) is None
    clock.now += SESSION - timedelta(seconds=1)
    assert registry.session(second) == ann
    clock.now += timedelta(seconds=1)
    assert registry.session(second) is None


def test_with_an_operator_go_his_sessions(registry: Registry) -> None:
    ann = Operator("ann", "viewer")
    registry.add_operator("ann", "viewer")
    secret = registry.open_session(ann)
    registry.remove_operator("ann")
    registry.add_operator("ann", "operator")
    assert registry.session(secret) is None
    with pytest.raises(UnauthenticatedError):
        registry.open_session(Operator("bob", "viewer"))


def test_no_token_is_kept(registry: Registry, tmp_path: Path, url: str) -> None:
    ann = registry.add_operator("ann", "viewer")
    session = registry.open_session(Operator("ann", "viewer"))
    invited = registry.invite("kitchen").token
    if url.startswith("sqlite"):
        kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        for secret in (ann, session, invited):
            assert secret.encode() not in kept


# Devices


def test_the_life_of_a_device(registry: Registry, clock: Clock) -> None:
    device = SigningDevice(1)
    invitation = registry.invite("kitchen")
    (invited,) = registry.devices()
    assert (invited.name, invited.state, invited.device) == ("kitchen", "invited", None)
    record, is_new = registry.register(device.registration(invitation.token), signed_ms=1)
    assert is_new
    assert (record.state, record.device) == ("registered", device.id)
    assert record.public_key == device.identity.public.hex()
    clock.now += timedelta(hours=1)
    registry.report(device.id, a_report(state="updating", attempted=2), signed_ms=2)
    seen = registry.device(device.id)
    assert seen.report == a_report(state="updating", attempted=2)
    assert seen.reported_at == seen.last_seen == START + timedelta(hours=1)
    assert registry.revoke("kitchen").state == "revoked"
    with pytest.raises(ForbiddenError, match="revoked"):
        registry.report(device.id, a_report(), signed_ms=3)
    assert registry.device(device.id).report == seen.report


def test_a_token_admits_one_device_once(registry: Registry) -> None:
    token = registry.invite("kitchen").token
    first, second = SigningDevice(1), SigningDevice(2)
    registry.register(first.registration(token), 1)
    _, is_new = registry.register(first.registration(token), 2)
    assert not is_new
    with pytest.raises(ForbiddenError, match="used by another device"):
        registry.register(second.registration(token), 1)
    with pytest.raises(ForbiddenError, match="used by another device"):
        # the same name with another key
        registry.register(SigningDevice(1).registration(token), 1)


def test_of_devices_that_use_a_token_at_once_one_wins(registry: Registry) -> None:
    token = registry.invite("kitchen").token

    def register(number: int) -> bool:
        try:
            return registry.register(SigningDevice(number).registration(token), 1)[1]
        except ForbiddenError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(register, range(8))) == 1
    assert registry.count("registered") == 1


def test_a_token_expires(registry: Registry, clock: Clock) -> None:
    late, in_time = registry.invite("late"), registry.invite("in-time", INVITATION * 2)
    clock.now += INVITATION
    with pytest.raises(ForbiddenError, match="expired"):
        registry.register(SigningDevice(1).registration(late.token), 1)
    assert registry.register(SigningDevice(1).registration(in_time.token), 1)[1]


def test_a_lost_reply_is_repeated_even_after_the_token_has_expired(
    registry: Registry, clock: Clock
) -> None:
    token, device = registry.invite("kitchen").token, SigningDevice(1)
    registry.register(device.registration(token), 1)
    clock.now += INVITATION * 2
    assert registry.register(device.registration(token), 2)[0].device == device.id


def test_a_new_invitation_replaces_the_old_token(registry: Registry) -> None:
    old, new = registry.invite("kitchen").token, registry.invite("kitchen").token
    with pytest.raises(ForbiddenError, match="unknown"):
        registry.register(SigningDevice(1).registration(old), 1)
    registry.register(SigningDevice(1).registration(new), 1)
    with pytest.raises(ConflictError, match="registered already"):
        registry.invite("kitchen")


def test_a_name_is_free_again_after_revocation_but_an_id_is_not(registry: Registry) -> None:
    device = admit(registry, 1, "kitchen")
    registry.revoke(device.id)
    token = registry.invite("kitchen").token
    with pytest.raises(ConflictError, match="known already"):
        registry.register(device.registration(token), 5)
    registry.register(SigningDevice(2).registration(token), 1)
    assert [each.state for each in registry.devices()] == ["revoked", "registered"]
    assert registry.revoke("kitchen").device == SigningDevice(2).id
    with pytest.raises(ConflictError, match="revoked already"):
        registry.revoke("kitchen")
    with pytest.raises(NotFoundError):
        registry.revoke("cellar")


def test_an_invitation_can_be_revoked(registry: Registry) -> None:
    token = registry.invite("kitchen").token
    registry.revoke("kitchen")
    with pytest.raises(ForbiddenError, match="revoked"):
        registry.register(SigningDevice(1).registration(token), 1)


def test_a_report_counts_once_and_never_after_a_later_one(registry: Registry) -> None:
    device = admit(registry, 1)
    registry.report(device.id, a_report(version=2), signed_ms=10)
    for replayed in (10, 9, 1):
        with pytest.raises(UnauthenticatedError, match="no later than the last one"):
            registry.report(device.id, a_report(version=1), signed_ms=replayed)
    report = registry.device(device.id).report
    assert report is not None
    assert report.version == 2
    with pytest.raises(UnauthenticatedError, match="not registered"):
        registry.report(SigningDevice(2).id, a_report(), signed_ms=1)


def test_of_equal_reports_at_once_one_is_kept(registry: Registry) -> None:
    device = admit(registry, 1)

    def report(_: int) -> bool:
        try:
            registry.report(device.id, a_report(), signed_ms=10)
        except UnauthenticatedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(report, range(8))) == 1


def test_the_fleet_is_counted(registry: Registry) -> None:
    reports: list[dict[str, object]] = [
        {"version": 1},
        {"version": 2},
        {"version": 2, "state": "updating"},
        {"version": 2, "state": "failed", "failure": "disk full"},
        {"version": 2},
        {"version": None},
    ]
    for number, fields in enumerate(reports):
        registry.report(admit(registry, number).id, a_report(**fields), signed_ms=5)
    admit(registry, 100)
    registry.revoke(SigningDevice(0).id)
    registry.invite("invited")
    fleet = registry.fleet()
    assert {n: each.model_dump() for n, each in fleet.versions.items()} == {
        2: {"serving": 2, "updating": 1, "failed": 1}
    }
    assert fleet.from_file.serving == 1
    assert (fleet.unreported, fleet.invited, fleet.revoked, fleet.total) == (1, 1, 1, 6)


def test_an_empty_fleet_is_counted(registry: Registry) -> None:
    assert registry.fleet().total == 0
    assert registry.fleet().versions == {}


def test_devices_are_listed_in_parts(registry: Registry) -> None:
    for number in range(5):
        registry.report(admit(registry, number).id, a_report(version=1 + number % 2), signed_ms=5)
    registry.invite("invited")
    names = [each.name for each in registry.devices(limit=2, offset=1)]
    assert names == ["device-1", "device-2"]
    assert [each.name for each in registry.devices("invited")] == ["invited"]
    assert [each.name for each in registry.devices(version=2)] == ["device-1", "device-3"]
    assert (registry.count(), registry.count("registered"), registry.count(version=1)) == (6, 5, 3)
    with pytest.raises(NotFoundError):
        registry.device(SigningDevice(99).id)


def test_devices_in_short_say_what_their_records_say(registry: Registry) -> None:
    registry.invite("Zoe")
    for number in (2, 0, 1):
        admit(registry, number)
    registry.report(SigningDevice(0).id, a_report(state="updating", version=7), signed_ms=5)
    registry.revoke("device-1")
    found = registry.outlines()
    assert [each.name for each in found] == ["device-0", "device-1", "device-2", "Zoe"]
    records = registry.records([each.row for each in found])
    for each, record in zip(found, records, strict=True):
        report = record.report
        assert each[1:5] == (record.name, record.state, record.device, record.last_seen)
        assert each[5:] == ((report.state, report.version) if report else (None, None))
    gone = max(each.row for each in found) + 1
    assert registry.records([found[2].row, gone, found[0].row]) == [records[2], records[0]]


def test_the_register_holds_the_keys_of_devices_that_count(
    registry: Registry, tmp_path: Path
) -> None:
    kept, revoked = admit(registry, 1), admit(registry, 2)
    registry.revoke(revoked.id)
    registry.invite("invited")
    registry.device_register().save(tmp_path / "register.json")
    keys = DeviceRegister.load(tmp_path / "register.json").keys
    assert set(keys) == {kept.id}
    assert len(keys[kept.id]) == 32


def test_every_change_is_in_the_audit_log_and_no_report(registry: Registry, tmp_path: Path) -> None:
    registry.add_operator("ann", "viewer", who="bob")
    device = admit(registry, 1)
    registry.report(device.id, a_report(), signed_ms=5)
    registry.revoke(device.id, who="ann")
    registry.remove_operator("ann")
    entries = AuditLog(tmp_path / "audit.jsonl").entries()
    actions = ["add-operator", "invite", "register", "revoke", "remove-operator"]
    assert [each["action"] for each in entries] == actions
    assert [entries[0]["who"], entries[2]["who"]] == ["bob", f"device {device.id}"]


def test_a_change_that_cannot_be_audited_is_not_made(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(FedspkError, match="cannot be written"):
        registry.add_operator("ann", "viewer")
    assert registry.operators() == []
