"""The API is sent what its own OpenAPI description allows, and what it does not.

Whatever comes: no 5xx, answers as described, and nothing for who has no token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from main_server import bearer, make_service
from schemathesis import Case, GenerationMode
from schemathesis.schemas import BaseSchema
from version_repository import publish
from web_server import running

from server.creation import create
from server.repository import Repository
from server.service import build_app

CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.response_headers_conformance,
]
PUBLIC = {"/healthz"}


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, models: list[Path]
) -> Iterator[tuple[BaseSchema, dict[str, str]]]:
    """The description of a running server, and an operator's header."""
    folder = tmp_path_factory.mktemp("fuzz") / "versions"
    create(folder)
    repository = Repository(folder)
    publish(repository, models[0])
    service = make_service(repository)
    operator = bearer(service.registry.add_operator("ann", "operator"))
    with running(build_app(service)) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json"), operator
    service.registry.close()


def cases(schema: BaseSchema, mode: GenerationMode) -> st.SearchStrategy[Case]:
    """Return requests for every operation."""
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 20
    return st.one_of([each.as_strategy(generation_mode=mode) for each in operations])


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_as_described_and_none_is_a_failure(
    served: tuple[BaseSchema, dict[str, str]], mode: GenerationMode
) -> None:
    schema, operator = served

    @bounded(300)
    @given(case=cases(schema, mode))
    def check(case: Case) -> None:
        case.call_and_validate(headers=operator, checks=CHECKS)

    check()


def test_without_a_token_nothing_is_answered(served: tuple[BaseSchema, dict[str, str]]) -> None:
    schema, _ = served

    @bounded(150)
    @given(case=cases(schema, GenerationMode.POSITIVE))
    def check(case: Case) -> None:
        if case.headers:
            case.headers.pop("Authorization", None)
        answer = case.call()
        if case.path not in PUBLIC:
            assert 400 <= answer.status_code < 500
            assert set(answer.json()) == {"error"}

    check()
