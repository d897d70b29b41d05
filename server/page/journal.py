"""The audit log, as the pages show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

_FIXED = ("time", "who", "action", "timestamp", "forced", "rounds")


@dataclass(frozen=True)
class Entry:
    """A line of the audit log.

    Args:
        time, who, action: when it was done, by whom, and what.
        forced: why the evaluation gate was passed by; None if it was not.
        facts: what else there is to know, by name.
    """

    time: datetime
    who: str
    action: str
    forced: str | None
    facts: Mapping[str, str]

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Self:
        """Read a line as it was written."""
        facts = {key: _told(line[key]) for key in line if key not in _FIXED}
        return cls(
            datetime.fromisoformat(line["time"]),
            line["who"],
            line["action"],
            line.get("forced"),
            {key.replace("_", " "): text for key, text in facts.items() if text},
        )


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {each}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
