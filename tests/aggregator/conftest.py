from __future__ import annotations

from collections.abc import Callable

import pytest

from clients import secure


@pytest.fixture
def poison(monkeypatch) -> Callable[..., None]:
    """Let the devices of a cohort add more than their clip allows."""
    encode = secure.encode_contribution

    def lie(cohort: int) -> None:
        def encode_lie(terms, delta, figures, rounding):
            vector = encode(terms, delta, figures, rounding)
            if terms.cohort == cohort and terms.size:
                vector[: terms.size] = terms.quantiser.levels
            return vector

        monkeypatch.setattr(secure, "encode_contribution", encode_lie)

    return lie
