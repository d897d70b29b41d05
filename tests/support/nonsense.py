"""What a file or a message may hold that is damaged, or was never one of ours."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def nested(more: st.SearchStrategy[Any] = st.floats()) -> st.SearchStrategy[Any]:  # noqa: B008
    """Draw nothing, a boolean, number, text or `more`, or lists and dictionaries of such."""
    return st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | more,
        lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw bytes cut short, with one bent, with more behind them, or other ones altogether."""
    place = draw(st.integers(0, len(whole) - 1))
    bent = bytearray(whole)
    bent[place] ^= draw(st.integers(1, 255))
    more = draw(st.binary(min_size=1, max_size=40))
    return draw(st.sampled_from([whole[:place], bytes(bent), whole + more, more]))
