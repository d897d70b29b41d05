"""What a device answers in JSON when it is asked who speaks, or how it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clients.followed import read_check, read_server, registered_with
from clients.recogniser import Decision
from clients.vault import Vault
from clients.vault_key import protection_of
from clients.versions import Versions


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


def device_status(vault: Vault, versions: Versions) -> dict[str, Any]:
    """Return which model versions, users and main server a device has, as JSON has it.

    Raises:
        VaultError: a box was altered.
    """
    server, check = read_server(vault), read_check(vault)
    trouble = check.trouble if check else None
    return {
        "home": str(vault.home),
        "device": vault.device,
        "protection": protection_of(vault.home),
        "version": versions.current.number,
        "model": versions.current.model_hash,
        "previous": versions.previous.model_hash if versions.previous else None,
        "thresholds": [
            {"false_accept": each.false_accept, "score": each.score}
            for each in versions.current.thresholds
        ],
        "users": [
            {"name": user.name, "recordings": len(user.recordings), "seconds": user.seconds}
            for user in vault.users()
        ],
        "damaged": sorted(vault.unserved(versions.current.model_hash)),
        "server": server.address if server else None,
        "registered": registered_with(vault) is not None,
        "left": check.version_left(versions.current) if check else None,
        "channel": check.channel if check else None,
        "last_check": check.at.isoformat(timespec="seconds") if check else None,
        "trouble": trouble
        and {
            "failure": trouble.failure,
            "error": trouble.sentence,
            "version": trouble.version,
        },
    }
