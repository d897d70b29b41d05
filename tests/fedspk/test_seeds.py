"""Child seeds depend on every part, and only on the parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedspk.seeds import derive, numpy_generator

parts = st.lists(st.integers() | st.text(), min_size=1, max_size=4)


@given(parts, parts)
def test_equal_parts_equal_seeds_else_different(
    first: list[int | str], other: list[int | str]
) -> None:
    assert (derive(*first) == derive(*other)) == (first == other)


def test_known_values_on_every_machine() -> None:
    assert derive(0, "device", 3) == 2450899840954732393
    assert numpy_generator(0).integers(1 << 30) == numpy_generator(0).integers(1 << 30)
