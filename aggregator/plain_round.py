"""Rounds in clear: every device sends its update and its figures, for all the aggregator to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from aggregator.checkpoint import FederationState
from aggregator.fleet import Fleet
from aggregator.optimisers import Float32Array, Float64Array
from aggregator.record import RoundProgress
from aggregator.rounds import WeightedMean, mean_loss, require_replies
from fedspk.errors import FedspkError
from fedspk.rounds import (
    EvaluateReply,
    EvaluateRequest,
    RunConfig,
    TrainReply,
    TrainRequest,
)

if TYPE_CHECKING:
    from fedspk.weights import WeightStore


class PlainRounds:
    """What the devices of a run learn and report, in clear.

    Args:
        fleet: the devices.
        config: the run.
        store: the models, and the updates that travel by hash.
    """

    def __init__(self, fleet: Fleet, config: RunConfig, store: WeightStore) -> None:
        self._fleet = fleet
        self._config = config
        self._text = config.to_json()
        self._store = store

    @property
    def privacy(self) -> None:
        """Nothing is promised."""
        return None

    @property
    def budget(self) -> None:
        """Nothing is promised."""
        return None

    def train(
        self,
        state: FederationState,
        batch: Sequence[str],
        present: Sequence[str],
        progress: RoundProgress,
    ) -> Float64Array:
        """Let the batch's devices train from `state` and return the weighted mean delta (n,).

        The deltas are added in the order of the devices' names, so that the sum has the same bits
        whoever answers first.

        Raises:
            FedspkError: too few devices answered.
        """
        asked = sorted(set(batch) & set(present))
        request = TrainRequest(state.model, progress.round, state.best.round, self._text)
        answers = self._fleet.ask("train", dict.fromkeys(asked, request), TrainReply, progress)
        replies = dict(answers)
        size = self._store.get(state.model).size
        mean, losses = WeightedMean(size), []
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
            progress.bytes_up += 4 * size
        progress.asked, progress.answered = len(asked), len(losses)
        progress.train_loss = mean_loss(losses)
        require_replies(len(losses), len(asked), self._config, progress.round, progress.failures)
        return mean.mean()

    def validate(
        self, state: FederationState, present: Sequence[str], progress: RoundProgress
    ) -> None:
        """Let the devices validate `state`'s model; the progress gets their mean loss.

        Raises:
            FedspkError: too few devices answered.
        """
        request = EvaluateRequest(state.model, state.round, self._text)
        requests = dict.fromkeys(present, request)
        replies = dict(self._fleet.ask("evaluate", requests, EvaluateReply, progress))
        require_replies(len(replies), len(present), self._config, state.round, progress.failures)
        ordered = [replies[device] for device in sorted(replies)]
        progress.training_seconds += sum(reply.seconds for reply in ordered)
        progress.validation_loss = mean_loss([reply.loss for reply in ordered if reply.examples])

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
