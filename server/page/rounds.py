"""Rounds of federated training, as far back as the audit log goes.

Intermediate versions are withdrawn after a while; the log keeps who took part in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fedspk.release import Evaluation
from server.page.catalogue import Catalogue


@dataclass(frozen=True)
class Round:
    """A round: devices asked (`cohort`) and those in the sum (`survivors`), where known.

    `released` says whether its version is still in the release, with `evaluation` if it has one.
    """

    version: int
    number: int
    cohort: int | None
    survivors: int | None
    time: datetime
    released: bool = False
    evaluation: Evaluation | None = None

    @property
    def share(self) -> float | None:
        """Survivors in per cent of the cohort."""
        if not self.cohort or self.survivors is None:
            return None
        return round(100 * min(self.survivors / self.cohort, 1), 1)


def rounds(catalogue: Catalogue, lines: Iterable[Mapping[str, Any]]) -> list[Round]:
    """Return all rounds, newest first.

    Args:
        catalogue: what is published.
        lines: of the audit log, oldest first.
    """
    found = {each.version: each for each in _logged(lines)}
    for version, manifest in catalogue.models.items():
        training = manifest.training
        if training is None or training.round is None or manifest.rolled_back_to is not None:
            continue
        found[version] = Round(
            version,
            training.round,
            training.cohort_size,
            training.survivors,
            manifest.created,
            True,
            manifest.evaluation,
        )
    return [found[version] for version in sorted(found, reverse=True)]


def _logged(lines: Iterable[Mapping[str, Any]]) -> list[Round]:
    """Return the rounds whose publication took effect."""
    found: list[Round] = []
    last: list[Round] = []  # of the last change, which the next line may call interrupted
    for line in lines:
        if line["action"] == "interrupted":
            last = []
        elif "timestamp" in line:
            found += last
            time = datetime.fromisoformat(line["time"])
            last = [
                Round(
                    each["version"], each["round"], each["cohort"], each["survivors"], time, False
                )
                for each in line.get("rounds", ())
            ]
    return found + last
