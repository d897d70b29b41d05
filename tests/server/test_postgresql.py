"""A main server whose registry is in PostgreSQL, as `server.toml` says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
from main_server import SigningDevice, bearer, make_service, serving, write_settings
from postgres import PASSWORD, PROGRAMS, postgres

from fedspk.api import API
from fedspk.cli import run
from fedspk.errors import FedspkError
from server.faults import ConflictError
from server.registry import Registry
from server.repository import Repository


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if None in PROGRAMS:
        pytest.skip("no PostgreSQL on this machine")
    with postgres() as server:
        yield server + "postgres"


def test_devices_and_operators_live_in_postgresql(repository: Repository, url: str) -> None:
    write_settings(repository.folder, database=url)
    assert run(["server", "add-operator", str(repository.folder), "ann", "--role", "viewer"]) == 0
    service = make_service(repository)
    device = SigningDevice(1)
    with serving(service) as client:
        assert device.register(client, service.registry.invite("kitchen").token).status_code == 201
        assert device.report(client).status_code == 204
        operator = bearer(service.registry.add_operator("bob", "viewer"))
        assert client.get(f"{API}/fleet", headers=operator).json()["total"] == 1
        with psycopg.connect(url) as connection:
            names = connection.execute("SELECT name FROM operators ORDER BY name").fetchall()
            assert names == [("ann",), ("bob",)]
        assert not (repository.folder / "registry.sqlite").exists()
    service.registry.close()


def test_a_database_that_goes_away_is_a_refusal_until_it_is_back(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    if None in PROGRAMS:
        pytest.skip("no PostgreSQL on this machine")
    with postgres() as server:
        write_settings(repository.folder, database=server + "postgres")
        service = make_service(repository)
        operator = bearer(service.registry.add_operator("ann", "viewer"))
        with serving(service) as client:
            with psycopg.connect(server + "template1", autocommit=True) as connection:
                connection.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = 'postgres'"
                )
                away = client.get(f"{API}/fleet", headers=operator)
                assert away.status_code == 503
                assert "its log says why" in away.json()["error"]
                assert "registry cannot be used" in caplog.text
                assert PASSWORD not in caplog.text
                assert client.get("/healthz").json()["database"] is False
                assert client.get("/metadata/timestamp.json").status_code == 200
                connection.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
            assert client.get(f"{API}/fleet", headers=operator).status_code == 200
        service.registry.close()


def test_what_two_ask_for_at_once_one_gets_and_the_other_is_told(url: str) -> None:
    registry = Registry.open(url)

    def at_once(*asked: Callable[[], object]) -> list[type[Exception] | None]:
        start = threading.Barrier(len(asked))

        def ask(each: Callable[[], object]) -> type[Exception] | None:
            start.wait()
            try:
                each()
            except FedspkError as error:
                return type(error)
            return None

        with ThreadPoolExecutor(len(asked)) as pool:
            return list(pool.map(ask, asked))

    for number in range(20):
        name, device = f"r{number}", SigningDevice(1000 + number)
        added = at_once(*[partial(registry.add_operator, name, "viewer")] * 4)
        assert sorted(each is None for each in added) == [False, False, False, True]
        assert {*added} == {None, ConflictError}
        token = registry.invite(name).token
        again, registered = at_once(
            partial(registry.invite, name),
            partial(registry.register, device.registration(token), 1),
        )
        assert (again is None) != (registered is None)
        if again is None:
            registry.register(device.registration(registry.invite(name).token), 1)
        revoked = at_once(*[partial(registry.revoke, name)] * 4)
        assert sorted(each is None for each in revoked) == [False, False, False, True]
    registry.close()


@pytest.mark.parametrize(
    "database", [f"postgresql://fedspk:{PASSWORD}@h/d", f"postgresql://h/d?password={PASSWORD}"]
)
def test_a_password_that_others_may_read_is_refused(repository: Repository, database: str) -> None:
    write_settings(repository.folder, 0o644, database=database)
    with pytest.raises(FedspkError, match="chmod 600") as caught:
        Registry.of(repository.folder)
    assert PASSWORD not in str(caught.value)
