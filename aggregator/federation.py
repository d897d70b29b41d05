"""The loop over rounds: Algorithm 1 of Woubie and Bäckström 2021 on a Flower grid.

One round: name the model by its hash, let the sampled devices train, add up their weighted deltas
in the order of the devices' names, step, let all devices report their validation loss, write the
checkpoint. The numbers depend on the configuration and the data alone, not on the grid, the number
of workers, the order of replies or an interruption between rounds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from flwr.serverapp import Grid

from aggregator.checkpoint import (
    FederationState,
    RoundRecord,
    load_checkpoint,
    save_checkpoint,
)
from aggregator.exchange import ask
from aggregator.optimisers import Float32Array, ServerOptimiser, build_optimiser
from aggregator.rounds import Best, WeightedMean, mean_loss, require_replies, sample
from fedspk.errors import FedspkError
from fedspk.rounds import (
    DescribeReply,
    EvaluateReply,
    EvaluateRequest,
    RunConfig,
    TrainReply,
    TrainRequest,
)

if TYPE_CHECKING:
    from fedspk.weights import WeightStore

OnRound = Callable[[RoundRecord], None]
Reply = TypeVar("Reply", TrainReply, EvaluateReply)

_NODE_POLL_SECONDS = 1.0
_SILENT_ROUNDS = 10  # a node that did not say who it is is not asked again for so long


@dataclass(frozen=True)
class FederationResult:
    """The outcome: the best round's model, the last one's, and what every round did."""

    model: str
    best_round: int
    last_model: str
    rounds: int
    history: tuple[RoundRecord, ...]

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
    on_round: OnRound | None = None,
) -> FederationResult:
    """Run the rounds that the checkpoint does not hold yet and return the result.

    Args:
        grid: the devices; its nodes answer `query.describe`, `train` and `evaluate`.
        config: the run.
        store: this run's own store of models, which the devices read too; vectors that the run
            needs no more are removed from it.
        checkpoint_dir: this run's own folder; a checkpoint in it is continued.
        initial: hash of the flat float32 vector that the run starts from.
        on_round: called after each round (round 0: the initial model's evaluation).

    Raises:
        FedspkError: too few devices answered, or the checkpoint is another run's.
    """
    state = load_checkpoint(checkpoint_dir, config, initial)
    federation = _Federation(grid, config, store)
    if state is None:
        state = federation.start(initial)
        store.sync(state.vectors())
        save_checkpoint(checkpoint_dir, state, config)
        _tell(on_round, state)
    while state.round < config.rounds and not state.best.exhausted(config.patience):
        before = state
        state = federation.round(before)
        store.sync(state.vectors() - before.vectors())
        save_checkpoint(checkpoint_dir, state, config)
        _forget(store, before.vectors() - state.vectors())
        _tell(on_round, state)
    validated = state.best.loss is not None
    return FederationResult(
        model=state.best_model if validated else state.model,
        best_round=state.best.round if validated else state.round,
        last_model=state.model,
        rounds=state.round,
        history=state.history,
    )


def _tell(on_round: OnRound | None, state: FederationState) -> None:
    if on_round is not None:
        on_round(state.history[-1])


def _forget(store: WeightStore, hashes: Iterable[str]) -> None:
    for name in sorted(hashes):
        store.remove(name)


class _Federation:
    """One run's grid, devices and arithmetic; all that changes is in `FederationState`."""

    def __init__(self, grid: Grid, config: RunConfig, store: WeightStore) -> None:
        self._grid = grid
        self._config = config
        self._text = config.to_json()
        self._store = store
        self._devices: dict[str, int] = {}
        self._silent_until: dict[int, int] = {}  # node: the round in which it is asked again

    def start(self, initial: str) -> FederationState:
        """Evaluate the initial model: round 0."""
        state = FederationState(0, initial, initial, Best(), initial)
        return self._evaluated(state, _Progress(0))

    def round(self, state: FederationState) -> FederationState:
        """Return the state after one more round."""
        number = state.round + 1
        progress = _Progress(number)
        asked = sample(self._present(progress), self._config, number)
        request = TrainRequest(state.model, number, state.best.round, self._text)
        replies = self._ask("train", asked, request.to_record(), TrainReply, progress)
        model = self._store.get(state.model)
        progress.count_down(set(asked) - set(state.holders), model.nbytes)
        next_model, optimiser = self._step(state, model, replies, progress)
        next_state = replace(state, round=number, model=next_model, optimiser=optimiser, holders=())
        return self._evaluated(next_state, progress)

    def _step(
        self,
        state: FederationState,
        model: Float32Array,
        replies: dict[str, TrainReply],
        progress: _Progress,
    ) -> tuple[str, dict[str, str]]:
        """Average the updates and move the model; return the hashes of model and moments."""
        mean = WeightedMean(model.size)
        losses = []
        files = Counter(reply.update for reply in replies.values())  # equal updates share a file
        kept = state.vectors()
        for device in sorted(replies):
            reply = replies.pop(device)
            try:
                mean.add(self._delta(reply), reply.weight)
            except FedspkError as error:
                progress.failures.append(f"{device}: {error}")
                continue
            finally:
                files[reply.update] -= 1
                if reply.update and not files[reply.update] and reply.update not in kept:
                    self._discard(reply.update)
            losses.append(reply.loss)
            progress.steps += reply.steps
            progress.training_seconds += reply.seconds
            progress.bytes_up += model.nbytes
        require_replies(
            len(losses), progress.asked, self._config, progress.round, progress.failures
        )
        progress.answered = len(losses)
        progress.train_loss = mean_loss(losses)
        optimiser = self._restored_optimiser(state)
        moved = optimiser.step(model, mean.mean())
        stored = {name: self._store.put(vector) for name, vector in optimiser.state.items()}
        return self._store.put(moved), stored

    def _evaluated(self, state: FederationState, progress: _Progress) -> FederationState:
        """Return the state with the devices' validation loss and the round's record."""
        config = self._config
        if _is_due(config, state.round):
            devices = sorted(self._present(progress))
            request = EvaluateRequest(state.model, state.round, self._text)
            replies = self._ask("evaluate", devices, request.to_record(), EvaluateReply, progress)
            require_replies(len(replies), len(devices), config, state.round, progress.failures)
            size = self._store.get(state.model).nbytes
            progress.count_down(set(devices) - set(state.holders), size)
            progress.training_seconds += sum(replies[name].seconds for name in sorted(replies))
            losses = [replies[name].loss for name in sorted(replies) if replies[name].examples]
            progress.validation_loss = mean_loss(losses)
            best = state.best.after(state.round, progress.validation_loss)
            better = best.round == state.round and best.loss is not None
            state = replace(
                state,
                best=best,
                best_model=state.model if better else state.best_model,
                holders=tuple(devices),
            )
        return replace(state, history=(*state.history, progress.record()))

    def _present(self, progress: _Progress) -> list[str]:
        """Return the names of the devices that are there now; asks new nodes who they are.

        A silent node costs the whole timeout, so it is left alone for some rounds.
        """
        nodes = self._nodes()
        self._devices = {name: node for name, node in self._devices.items() if node in nodes}
        quiet = {node for node, until in self._silent_until.items() if progress.round < until}
        unknown = sorted(nodes - set(self._devices.values()) - quiet)
        replies, failures = ask(
            self._grid,
            "query.describe",
            unknown,
            {"round": progress.round},
            DescribeReply,
            group=str(progress.round),
            timeout=self._config.round_timeout_seconds,
        )
        for node, reply in replies.items():
            if self._devices.setdefault(reply.device, node) != node:
                raise FedspkError(f"Two nodes say that they are {reply.device}; give each its own.")
        for each in failures:
            if each.is_silent:
                self._silent_until[each.node_id] = progress.round + _SILENT_ROUNDS
        reasons = [each.reason for each in failures]
        progress.failures += [reason for reason in reasons if reason not in progress.failures]
        require_replies(len(self._devices), len(nodes), self._config, progress.round, reasons)
        return list(self._devices)

    def _nodes(self) -> set[int]:
        deadline = time.monotonic() + self._config.round_timeout_seconds
        while not (nodes := set(self._grid.get_node_ids())):
            if time.monotonic() > deadline:
                raise FedspkError("No device is connected; start the devices first.")
            time.sleep(_NODE_POLL_SECONDS)
        return nodes

    def _discard(self, update: str) -> None:
        try:
            self._store.remove(update)
        except FedspkError:  # not the name of a vector
            return

    def _delta(self, reply: TrainReply) -> Float32Array:
        if reply.update:
            return self._store.get(reply.update)
        if len(reply.delta) % 4:
            raise FedspkError("An update is not a whole number of float32 numbers.")
        return np.frombuffer(reply.delta, dtype="<f4")

    def _restored_optimiser(self, state: FederationState) -> ServerOptimiser:
        optimiser = build_optimiser(self._config, state.round + 1)
        optimiser.state = {
            name: np.array(self._store.get(vector)) for name, vector in state.optimiser.items()
        }
        return optimiser

    def _ask(
        self,
        verb: str,
        devices: list[str],
        record: Mapping[str, str | int | float | bytes],
        reply_type: type[Reply],
        progress: _Progress,
    ) -> dict[str, Reply]:
        names = {self._devices[device]: device for device in devices}
        replies, failures = ask(
            self._grid,
            verb,
            list(names),
            record,
            reply_type,
            group=str(progress.round),
            timeout=self._config.round_timeout_seconds,
        )
        if verb == "train":
            progress.asked = len(devices)
        progress.failures += [f"{names[each.node_id]}: {each.reason}" for each in failures]
        return {names[node]: reply for node, reply in replies.items()}


@dataclass
class _Progress:
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
    started: float = field(default_factory=time.monotonic)

    def count_down(self, devices: set[str], size: int) -> None:
        self.bytes_down += len(devices) * size

    def record(self) -> RoundRecord:
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
        )


def _is_due(config: RunConfig, round_number: int) -> bool:
    every = config.evaluate_every
    return every > 0 and (round_number % every == 0 or round_number == config.rounds)
