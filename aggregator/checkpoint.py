"""What the aggregator remembers between rounds: one small JSON file that names vectors by hash.

The file is replaced atomically after every round, when the vectors it names are already in the
store: a crash at any instant leaves the last whole round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aggregator.rounds import Best
from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json
from fedspk.rounds import RunConfig

_FORMAT = 1
_FILE_NAME = "checkpoint.json"


@dataclass(frozen=True)
class RoundRecord:
    """What one round did. Round 0 is the evaluation of the initial model.

    The bytes are what a fleet would transfer: the model to every device that does not hold it
    yet, and one update from each device that answered. `steps` add up all devices' training,
    `training_seconds` their training and validation.
    """

    round: int
    train_loss: float | None
    validation_loss: float | None
    seconds: float
    bytes_down: int
    bytes_up: int
    asked: int
    answered: int
    steps: int
    training_seconds: float
    failures: tuple[str, ...]


@dataclass(frozen=True)
class FederationState:
    """The run after `round` rounds: models by content hash and the optimiser's vectors likewise."""

    round: int
    initial: str
    model: str
    best: Best
    best_model: str
    optimiser: Mapping[str, str] = field(default_factory=dict)
    holders: tuple[str, ...] = ()
    history: tuple[RoundRecord, ...] = ()

    def vectors(self) -> set[str]:
        """Return the hashes that this state needs."""
        return {self.initial, self.model, self.best_model, *self.optimiser.values()}


def save_checkpoint(folder: Path, state: FederationState, config: RunConfig) -> None:
    """Replace the folder's checkpoint.

    Raises:
        FedspkError: the folder cannot be written.
    """
    content = {"format": _FORMAT, "config": config.fingerprint(), "state": asdict(state)}
    write_json(Path(folder) / _FILE_NAME, content)


def load_checkpoint(folder: Path, config: RunConfig, initial: str) -> FederationState | None:
    """Return the folder's checkpoint, or None when there is none.

    Raises:
        FedspkError: it is broken, or of another configuration or initial model.
    """
    path = Path(folder) / _FILE_NAME
    if not path.exists():
        return None
    content = read_json(path)
    try:
        state = _state(content["state"])
        version, fingerprint = content["format"], content["config"]
    except (KeyError, TypeError) as error:
        raise FedspkError(f"{path}: is not a checkpoint; remove it to start afresh.") from error
    if version != _FORMAT or fingerprint != config.fingerprint() or state.initial != initial:
        raise FedspkError(
            f"{path}: belongs to another configuration or initial model; remove it or choose "
            f"another folder."
        )
    return state


def _state(content: dict[str, Any]) -> FederationState:
    history = tuple(
        RoundRecord(**{**record, "failures": tuple(record["failures"])})
        for record in content["history"]
    )
    return FederationState(
        **{
            **content,
            "best": Best(**content["best"]),
            "holders": tuple(content["holders"]),
            "history": history,
        }
    )
