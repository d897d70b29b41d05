"""The evaluation gate: a model that the devices' validation does not support is not published.

The devices report their validation loss of the model that the run starts from, and of every later
one that is a candidate. The gate needs both numbers:

>>> judge(0.91, start=1.20, margin=0.0)
Verdict(published=True, reason='validation loss 0.9100 against 1.2000 at the start')
>>> judge(1.25, start=1.20, margin=0.0).published
False
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether a model may be published, and why, in words."""

    published: bool
    reason: str


def judge(loss: float | None, *, start: float | None, margin: float = 0.0) -> Verdict:
    """Return whether a model may be published.

    Args:
        loss: the mean validation loss of the model over the devices; None: there is none.
        start: the same of the model that the run started from.
        margin: how much worse than the start, in units of the loss, is still accepted.
    """
    if loss is None or not math.isfinite(loss):
        return Verdict(False, "no device reported a finite validation loss of the model")
    if start is None or not math.isfinite(start):
        return Verdict(False, "no device reported a finite validation loss of the initial model")
    compared = f"validation loss {loss:.4f} against {start:.4f} at the start"
    if loss > start + margin:
        allowed = f" and {margin:g} allowed" if margin else ""
        return Verdict(False, f"{compared}{allowed}")
    return Verdict(True, compared)
