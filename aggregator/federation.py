"""The loop over rounds: Algorithm 1 of Woubie and Bäckström 2021 on a Flower grid.

One round: name the model by its hash, let a batch of devices train, take the weighted mean of their
deltas (of which a secure run knows the sums alone), step, let all devices validate, write the
checkpoint. The numbers depend on the configuration and the data alone, not on the grid, the number
of workers, the order of replies or an interruption between rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from flwr.serverapp import Grid

from aggregator.checkpoint import FederationState, load_checkpoint, save_checkpoint
from aggregator.facts import Budget
from aggregator.fleet import Fleet
from aggregator.gate import Verdict, judge
from aggregator.optimisers import Float64Array, ServerOptimiser, build_optimiser
from aggregator.plain_round import PlainRounds
from aggregator.record import RoundProgress, RoundRecord
from aggregator.rounds import Best, RoundFailed, is_due, sample, turn, with_newcomers
from aggregator.secure_round import SecureRounds
from aggregator.secure_sums import OnStage, SecureSums
from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig
from fedspk.secagg.unmask import MaskRemover
from fedspk.store import BlobStore

if TYPE_CHECKING:
    from fedspk.weights import WeightStore

OnRound = Callable[[RoundRecord], None]
Offer = Callable[[str, RoundRecord | RoundProgress, Budget], None]

FAILED_ROUNDS = 3
"""So many rounds in a row that come to nothing end a run: the next would hardly go better."""


@dataclass(frozen=True)
class FederationResult:
    """The outcome: the best round's model, the last one's, and what every round did.

    `privacy` says in words what noise guarantees, where there is some; `budget` in epsilon and
    delta.
    """

    model: str
    best_round: int
    last_model: str
    rounds: int
    history: tuple[RoundRecord, ...]
    privacy: str | None = None
    budget: Budget = None

    @property
    def verdict(self) -> Verdict:
        """Whether the devices' validation supports that the model is published."""
        if self.best_round == 0:
            return Verdict(False, "no round did better than the model that the run started from")
        start, kept = (self.history[number].validation_loss for number in (0, self.best_round))
        return judge(kept, start=start)

    @property
    def bytes_down(self) -> int:
        """Bytes that the devices fetched in all."""
        return sum(record.bytes_down for record in self.history)

    @property
    def bytes_up(self) -> int:
        """Bytes of updates that the devices sent in all."""
        return sum(record.bytes_up for record in self.history)


def run_federation(
    grid: Grid,
    config: RunConfig,
    store: WeightStore,
    checkpoint_dir: Path,
    *,
    initial: str,
    register: Path | None = None,
    workers: int = 1,
    on_round: OnRound | None = None,
    on_stage: OnStage | None = None,
    offer: Offer | None = None,
) -> FederationResult:
    """Run the rounds that the checkpoint does not hold yet and return the result.

    Args:
        grid: the devices; its nodes answer the messages of `fedspk.rounds`.
        config: the run.
        store: this run's own store of models, which the devices read too; vectors that the run
            needs no more are removed from it.
        checkpoint_dir: this run's own folder; a checkpoint in it is continued.
        initial: hash of the flat float32 vector that the run starts from.
        register: the file of the devices' public keys, which a secure run needs.
        workers: processes that take the masks off a large sum.
        on_round: called after each round (round 0: the initial model's evaluation).
        on_stage: called after each stage of a round's secure sums.
        offer: called with a model's hash, the record of the round that made it, and the privacy
            spent, before devices are asked to use it; a `FedspkError` of it fails the round.

    Raises:
        FedspkError: `FAILED_ROUNDS` rounds in a row failed, or all of a run; no device is left, the
            checkpoint is another run's, or a secure run has no register.
    """
    fleet = Fleet(grid, config)
    with ExitStack() as closing:
        rounds: Rounds = PlainRounds(fleet, config, store)
        if config.secure is not None:
            sums = SecureSums(
                fleet,
                config.secure,
                _given(register),
                BlobStore(store.root),
                closing.enter_context(MaskRemover(workers)),
                on_stage,
            )
            rounds = SecureRounds(sums, config, config.secure, store, checkpoint_dir)
        federation = _Federation(fleet, rounds, config, store, offer)
        state = _run(federation, checkpoint_dir, initial, on_round)
    validated = state.best.loss is not None
    return FederationResult(
        model=state.best_model if validated else state.model,
        best_round=state.best.round if validated else state.round,
        last_model=state.model,
        rounds=state.round,
        history=state.history,
        privacy=rounds.privacy,
        budget=rounds.budget,
    )


def _given(register: Path | None) -> Path:
    if register is None:
        raise FedspkError(
            "A run with secure sums needs the register of the devices' keys; name its file."
        )
    return register


def _run(
    federation: _Federation, folder: Path, initial: str, on_round: OnRound | None
) -> FederationState:
    """Run the rounds that are left; a checkpoint names vectors that are on the disk alone.

    A failed round is part of the checkpoint: a run that continues goes on with the next one.
    """
    config, store = federation.config, federation.store
    state = load_checkpoint(folder, config, initial)
    if state is None:
        state = federation.start(initial)
        store.sync(state.vectors())
        save_checkpoint(folder, state, config)
        _tell(on_round, state)
    failed = 0
    while state.round < config.rounds and not state.best.exhausted(config.patience):
        before = state
        state = federation.round(before)
        store.sync(state.vectors() - before.vectors())
        save_checkpoint(folder, state, config)
        _forget(store, before.vectors() - state.vectors())
        _tell(on_round, state)
        failed = failed + 1 if state.history[-1].failure else 0
        if failed == FAILED_ROUNDS:
            raise FedspkError(
                f"{failed} rounds in a row failed, so the run ends here; it can be continued. "
                f"{state.history[-1].failure}"
            )
    if state.round > 0 and all(record.failure for record in state.history[1:]):
        raise FedspkError(
            f"None of the run's {state.round} rounds was finished. {state.history[-1].failure}"
        )
    return state


def _tell(on_round: OnRound | None, state: FederationState) -> None:
    if on_round is not None:
        on_round(state.history[-1])


def _forget(store: WeightStore, hashes: Iterable[str]) -> None:
    for name in sorted(hashes):
        store.remove(name)


class Rounds(Protocol):
    """How a run learns what its devices learnt: in clear, or as sums alone."""

    @property
    def privacy(self) -> str | None:
        """What noise guarantees so far, in words; None without noise."""

    @property
    def budget(self) -> Budget:
        """Epsilon and delta that noise guarantees so far; None without noise."""

    def train(
        self,
        state: FederationState,
        batch: Sequence[str],
        present: Sequence[str],
        progress: RoundProgress,
    ) -> Float64Array:
        """Let the devices of `batch` that are there train from `state`; return the mean delta.

        Raises:
            RoundFailed: there is none that counts.
        """

    def validate(
        self, state: FederationState, present: Sequence[str], progress: RoundProgress
    ) -> None:
        """Let the devices validate `state`'s model; the progress gets their mean loss.

        Raises:
            RoundFailed: there is none that counts.
        """


class _Federation:
    """One run's grid, devices and arithmetic; all that changes is in `FederationState`."""

    def __init__(
        self,
        fleet: Fleet,
        rounds: Rounds,
        config: RunConfig,
        store: WeightStore,
        offer: Offer | None,
    ) -> None:
        self.config = config
        self.store = store
        self._fleet = fleet
        self._rounds = rounds
        self._on_offer = offer

    def start(self, initial: str) -> FederationState:
        """Evaluate the initial model: round 0."""
        state, progress = FederationState(0, initial, initial, Best(), initial), RoundProgress(0)
        self._offer(initial, progress, 0)
        return self._evaluated(state, progress)

    def round(self, state: FederationState) -> FederationState:
        """Return the state after one more round; one that failed leaves model and optimiser."""
        progress = RoundProgress(state.round + 1)
        try:
            made = next(record for record in reversed(state.history) if record.failure is None)
            self._offer(state.model, made, progress.round)
            present = self._fleet.present(progress)
        except RoundFailed as error:
            return self._failed(state, progress, error)
        state, batch = self._chosen(state, present, progress.round)
        model = self.store.get(state.model)
        fetching = set(batch) & set(present) - set(state.holders)
        progress.bytes_down += len(fetching) * model.nbytes
        fetched = replace(state, holders=tuple(sorted({*state.holders, *fetching})))
        try:
            mean = self._rounds.train(state, batch, present, progress)
        except RoundFailed as error:
            return self._failed(fetched, progress, error)
        optimiser = self._restored_optimiser(state)
        moved = optimiser.step(model, mean)
        moments = {name: self.store.put(vector) for name, vector in optimiser.state.items()}
        after = replace(
            state,
            round=progress.round,
            model=self.store.put(moved),
            optimiser=moments,
            holders=(),
        )
        try:
            self._offer(after.model, progress, progress.round)
        except RoundFailed as error:
            _forget(self.store, after.vectors() - state.vectors())
            return self._failed(fetched, progress, error)
        return self._evaluated(after, progress)

    def _offer(self, model: str, made: RoundRecord | RoundProgress, round_number: int) -> None:
        """Let others know of a model that devices will be asked to use."""
        if self._on_offer is None:
            return
        try:
            self._on_offer(model, made, self._rounds.budget)
        except FedspkError as error:
            raise RoundFailed(
                f"Round {round_number}: its model could not be handed over: {error}"
            ) from error

    def _failed(
        self, state: FederationState, progress: RoundProgress, error: RoundFailed
    ) -> FederationState:
        progress.failure = str(error)
        return self._evaluated(replace(state, round=progress.round), progress)

    def _chosen(
        self, state: FederationState, present: list[str], round_number: int
    ) -> tuple[FederationState, Sequence[str]]:
        """Return who trains in a round, and the state with everybody's batch."""
        if self.config.sampling == "random":
            return state, sample(present, self.config, round_number)
        batches = with_newcomers(state.batches, present, self.config)
        return replace(state, batches=batches), turn(batches, present, round_number)

    def _evaluated(self, state: FederationState, progress: RoundProgress) -> FederationState:
        """Return the state with the devices' validation loss and the round's record."""
        is_new = progress.failure is None or not _is_validated(state.history)
        if is_new and is_due(self.config, state.round):
            state = self._validated(state, progress)
        return replace(state, history=(*state.history, progress.record()))

    def _validated(self, state: FederationState, progress: RoundProgress) -> FederationState:
        """Return the state with the devices' validation loss; one that failed is skipped."""
        size = self.store.get(state.model).nbytes
        try:
            devices = self._fleet.present(progress)
            progress.bytes_down += len(set(devices) - set(state.holders)) * size
            state = replace(state, holders=tuple(devices))
            self._rounds.validate(state, devices, progress)
        except RoundFailed as error:
            progress.note(f"no validation: {error}")
            return state
        best = state.best.after(state.round, progress.validation_loss)
        better = best.round == state.round and best.loss is not None
        return replace(state, best=best, best_model=state.model if better else state.best_model)

    def _restored_optimiser(self, state: FederationState) -> ServerOptimiser:
        optimiser = build_optimiser(self.config, state.round + 1)
        optimiser.state = {
            name: np.array(self.store.get(vector)) for name, vector in state.optimiser.items()
        }
        return optimiser


def _is_validated(history: Sequence[RoundRecord]) -> bool:
    """Whether the model that these rounds have left has a validation loss."""
    for record in reversed(history):
        if record.validation_loss is not None:
            return True
        if record.failure is None:
            return False
    return False
