"""The strategies: who serves which versions, who picks the worker, and when profiles are renewed.

A strategy is a combination of a few properties that the engine understands, so a new one is one
entry of `STRATEGIES`; a new way to pick a worker is one member of `Selection`, a rule in
`engine.choose_workers` and, if it looks at profiles or versions, a branch in `kernel.serve`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fedspk.errors import FedspkError

Selection: TypeAlias = Literal["random", "synchronised", "hash", "group"]


@dataclass(frozen=True)
class Strategy:
    """One strategy of section 3 (device), 4 (server) or 5 (hybrid) of the paper.

    summary: one line for tables and reports.
    select: random, any worker; synchronised, any worker whose version at the last poll is not
        older than the profile, if there is one; hash, one worker for each user; group, any worker
        of the user's group, and groups are updated one after another.
    versions_served: by a worker, the newest it has and those before it. With two, a worker that
        misses a profile of its newest version renews it in the background and serves the older.
    keeps_profiles: the profile of an older version stays when a newer one is made.
    offline: the service stops, updates all workers and renews all profiles.
    profiles: where they are kept; a device sends its own along with each request, and uploads its
        enrolment audio when it must be renewed.
    handshake: devices ask for the newest version of all workers at intervals and renew in the
        background at a worker that has it.
    engine: where models run. On a device, `keeps_model` keeps the old one in use until the
        profile is renewed.
    """

    name: str
    summary: str
    select: Selection = "random"
    versions_served: Literal[1, 2] = 1
    keeps_profiles: bool = False
    offline: bool = False
    profiles: Literal["database", "device"] = "database"
    handshake: bool = False
    engine: Literal["server", "device"] = "server"
    keeps_model: bool = False


def _by_name(strategies: Iterable[Strategy]) -> dict[str, Strategy]:
    return {strategy.name: strategy for strategy in strategies}


STRATEGIES = _by_name(
    [
        Strategy("SSO", "single version, updated while serving"),
        Strategy("SSO-sync", "single version, workers polled", select="synchronised"),
        Strategy("SSO-hash", "single version, each user has one worker", select="hash"),
        Strategy("SSO-mul", "single version, old profiles are kept", keeps_profiles=True),
        Strategy("SD", "two versions a worker", versions_served=2, keeps_profiles=True),
        Strategy(
            "SD-group",
            "two versions a worker, updated group by group",
            select="group",
            versions_served=2,
            keeps_profiles=True,
        ),
        Strategy("offline", "service stopped until all is renewed", offline=True),
        Strategy("hybrid-single", "profiles on devices, single version", profiles="device"),
        Strategy(
            "hybrid-single-handshake",
            "profiles on devices, single version, handshake",
            profiles="device",
            handshake=True,
        ),
        Strategy(
            "hybrid-double",
            "profiles on devices, two versions a worker",
            profiles="device",
            versions_served=2,
            keeps_profiles=True,
        ),
        Strategy(
            "hybrid-double-handshake",
            "profiles on devices, two versions a worker, handshake",
            profiles="device",
            versions_served=2,
            keeps_profiles=True,
            handshake=True,
        ),
        Strategy("device", "all on the device, new model at once", engine="device"),
        Strategy(
            "device-keep",
            "all on the device, old model until renewed",
            engine="device",
            keeps_model=True,
        ),
    ]
)


def get_strategy(name: str) -> Strategy:
    """Return the strategy of that name.

    Raises:
        FedspkError: there is none.
    """
    if name not in STRATEGIES:
        raise FedspkError(f"strategy {name!r} is unknown; choose from {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]
