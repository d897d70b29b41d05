"""What a round did, as the checkpoint, the report and the log tell it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedspk.rounds import Purpose


@dataclass(frozen=True)
class SumRecord:
    """What the secure sums of one purpose took in one round, retries included.

    cohorts, survivors: devices that were asked into each sum, and that are in it.
    attempts: 1 when every sum was finished at once.
    discarded: cohorts whose sum was not to be believed.
    clipped: share of the updates that their devices scaled down; None where none is clipped.
    seconds: wall seconds of each stage.
    bytes_down, bytes_up: the protocol's messages and the masked vectors.
    """

    purpose: Purpose
    cohorts: tuple[int, ...]
    survivors: tuple[int, ...]
    attempts: int
    discarded: int
    clipped: float | None
    seconds: Mapping[str, float]
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class RoundRecord:
    """What one round did. Round 0 is the evaluation of the initial model.

    The bytes are what a fleet would transfer: the model to every device that does not hold it
    yet, one update from each device that answered, and what `secure` says. `steps` add up all
    devices' training, `training_seconds` their training and validation. `failures` are devices and
    cohorts that gave nothing; `failure` says why the whole round did, and left the model as it was.
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
    secure: tuple[SumRecord, ...] = ()
    failure: str | None = None


@dataclass
class RoundProgress:
    """The record of a round while it is being made."""

    round: int
    asked: int = 0
    answered: int = 0
    steps: int = 0
    training_seconds: float = 0.0
    train_loss: float | None = None
    validation_loss: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    failures: list[str] = field(default_factory=list)
    secure: list[SumRecord] = field(default_factory=list)
    failure: str | None = None
    started: float = field(default_factory=time.monotonic)

    def note(self, failure: str) -> None:
        """Add to the failures what is not among them yet."""
        if failure not in self.failures:
            self.failures.append(failure)

    def record(self) -> RoundRecord:
        """Return the finished record."""
        return RoundRecord(
            round=self.round,
            train_loss=self.train_loss,
            validation_loss=self.validation_loss,
            seconds=time.monotonic() - self.started,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            asked=self.asked,
            answered=self.answered,
            steps=self.steps,
            training_seconds=self.training_seconds,
            failures=tuple(self.failures),
            secure=tuple(self.secure),
            failure=self.failure,
        )
