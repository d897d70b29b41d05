"""What a device answers in JSON when it is asked who speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clients.recogniser import Decision


def verification(decision: Decision, warnings: Sequence[str]) -> dict[str, Any]:
    """Return whether a voice is a user's, as JSON has it."""
    return {
        "user": decision.user,
        "accepted": decision.accepted,
        "score": decision.score,
        "threshold": decision.threshold.score,
        "false_accept": decision.threshold.false_accept,
        "model": decision.model_hash,
        "warnings": list(warnings),
    }


def identification(decisions: Sequence[Decision], warnings: Sequence[str]) -> dict[str, Any]:
    """Return whose voice it is, if any user's, as JSON has it; the best decision stands first."""
    best = decisions[0]
    rate = best.threshold.false_accept
    return {
        "speaker": best.user if best.accepted else None,
        "scores": {each.user: each.score for each in decisions},
        "threshold": best.threshold.score,
        # each user is one more chance to be taken for somebody (a union bound)
        "false_accept": rate and min(1.0, rate * len(decisions)),
        "model": best.model_hash,
        "warnings": list(warnings),
    }
