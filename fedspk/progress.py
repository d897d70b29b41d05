"""Progress bars with rate and remaining time, quiet when standard error is not a terminal.

What people must hear meanwhile is a line of its own, with `warn`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    description: str = "",
    unit: str = "it",
    show: bool = True,
) -> tqdm[Any]:
    """Return a bar to iterate over or to `update`; it draws only on a terminal and if `show`.

    >>> sum(progress([1, 2, 3], description="adding", show=False))
    6
    """
    return tqdm(
        items,
        total=total,
        desc=description,
        unit=unit,
        disable=not (show and sys.stderr.isatty()),
        dynamic_ncols=True,
        leave=True,
        file=sys.stderr,
    )


def warn(sentence: str) -> None:
    """Write a warning to standard error, on a line of its own above any bar."""
    tqdm.write(f"fedspk: warning: {sentence}", file=sys.stderr)
