"""What the aggregator remembers between rounds: one small JSON file that names vectors by hash.

The file is replaced atomically after every round, when the vectors it names are already in the
store: a crash at any instant leaves the last whole round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from aggregator.record import RoundRecord
from aggregator.rounds import Batches, Best
from fedspk.errors import FedspkError
from fedspk.files import write_bytes
from fedspk.rounds import RunConfig

_FORMAT = 2
_FILE_NAME = "checkpoint.json"


@dataclass(frozen=True)
class FederationState:
    """The run after `round` rounds: models by content hash and the optimiser's vectors likewise.

    `holders` are the devices that hold the model, `batches` those that train in turn.
    """

    round: int
    initial: str
    model: str
    best: Best
    best_model: str
    optimiser: Mapping[str, str] = field(default_factory=dict)
    holders: tuple[str, ...] = ()
    batches: Batches = ()
    history: tuple[RoundRecord, ...] = ()

    def vectors(self) -> set[str]:
        """Return the hashes that this state needs."""
        return {self.initial, self.model, self.best_model, *self.optimiser.values()}


@dataclass(frozen=True)
class _Checkpoint:
    format: int
    config: str
    state: FederationState


def save_checkpoint(folder: Path, state: FederationState, config: RunConfig) -> None:
    """Replace the folder's checkpoint.

    Raises:
        FedspkError: the folder cannot be written.
    """
    content = _Checkpoint(_FORMAT, config.fingerprint(), state)
    write_bytes(Path(folder) / _FILE_NAME, msgspec.json.encode(content))


def load_checkpoint(folder: Path, config: RunConfig, initial: str) -> FederationState | None:
    """Return the folder's checkpoint, or None when there is none.

    Raises:
        FedspkError: it is broken, or of another configuration or initial model.
    """
    path = Path(folder) / _FILE_NAME
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Checkpoint)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FedspkError(f"{path}: is not a checkpoint; remove it to start afresh.") from error
    same_run = found.config == config.fingerprint() and found.state.initial == initial
    if found.format != _FORMAT or not same_run:
        raise FedspkError(
            f"{path}: belongs to another configuration or initial model; remove it or choose "
            f"another folder."
        )
    return found.state
