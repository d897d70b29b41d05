"""Hot loops run compiled where numba is installed (`pip install fedspk[fast]`), else as they stand.

A loop is one function of scalars and sequences. Plain Python reads lists fastest and numba arrays,
so `Loop` hands over whichever it runs on; the results are the same to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np


class Loop:
    """A function over sequences; those that it fills are returned as arrays."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any, compiled: bool | None = None) -> tuple[Any, list[Any]]:
        """Return the function's value and its arguments, arrays for what it may have filled."""
        if is_compiled() if compiled is None else compiled:
            return self._compiled(*arguments), list(arguments)
        given = [a.tolist() if isinstance(a, np.ndarray) else a for a in arguments]
        value = self._function(*given)
        arrays = [
            np.array(g, a.dtype) if isinstance(a, np.ndarray) else g
            for g, a in zip(given, arguments, strict=True)
        ]
        return value, arrays

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        import numba

        compiled: Callable[..., Any] = numba.njit(cache=True)(self._function)
        return compiled


def is_compiled() -> bool:
    """Return whether loops are compiled: numba is there, and NUMBA_DISABLE_JIT is not set."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return False
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True
