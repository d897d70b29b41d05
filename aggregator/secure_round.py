"""Rounds as secure sums: the aggregator learns the sums of cohorts and nothing of one device.

Weights and figures ride inside the masked vectors. Every cohort's mean must be one that honest
devices can have made, or it does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from aggregator.checkpoint import FederationState
from aggregator.optimisers import Float64Array
from aggregator.record import RoundProgress, SumRecord
from aggregator.robust import (
    combine,
    fewest_cohorts,
    largest_norm,
    planned_cohorts,
    require_norm,
)
from aggregator.rounds import RoundFailed, is_due, require_replies
from aggregator.secure_sums import CohortSum, SecureSums, SumTask
from fedspk.errors import FedspkError
from fedspk.rounds import (
    MaskedEvaluateRequest,
    MaskedTrainRequest,
    RunConfig,
    SumShareRequest,
)
from fedspk.secagg.config import SecureConfig
from fedspk.secagg.contribution import decode_total, sum_terms
from fedspk.secagg.ledger import PrivacyLedger
from fedspk.secagg.messages import OfferRequest, ShareRequest, Terms, UploadRequest
from fedspk.seeds import numpy_generator

if TYPE_CHECKING:
    from fedspk.weights import WeightStore

_LEDGER_FILE = "privacy.json"


class SecureRounds:
    """What the devices of a run learn and report, as sums over cohorts.

    Args:
        sums: of the run.
        config: the run.
        secure: how it sums.
        store: the models.
        folder: where the ledger of the devices' privacy is kept, if there is noise.
    """

    def __init__(
        self,
        sums: SecureSums,
        config: RunConfig,
        secure: SecureConfig,
        store: WeightStore,
        folder: Path,
    ) -> None:
        self._sums = sums
        self._config = config
        self._secure = secure
        self._text = config.to_json()
        self._store = store
        self._ledger = None
        if secure.privacy is not None:
            self._ledger = PrivacyLedger(Path(folder) / _LEDGER_FILE, secure.privacy)

    @property
    def privacy(self) -> str | None:
        """What noise guarantees so far, in words; None without noise."""
        return None if self._ledger is None else self._ledger.statement()

    @property
    def budget(self) -> tuple[float, float] | None:
        """Epsilon and delta that noise guarantees so far; None without noise."""
        if self._ledger is None or self._secure.privacy is None:
            return None
        return self._ledger.epsilon, self._secure.privacy.delta

    def train(
        self,
        state: FederationState,
        batch: Sequence[str],
        present: Sequence[str],
        progress: RoundProgress,
    ) -> Float64Array:
        """Let the batch's devices train from `state` and return the mean delta (n,).

        Raises:
            RoundFailed: too few devices or cohorts are in the sums.
            FedspkError: a privacy budget is spent.
        """
        number = progress.round
        following = number + len(state.batches)

        def upload(request: UploadRequest) -> MaskedTrainRequest:
            best = state.best.round
            return MaskedTrainRequest(state.model, number, best, self._text, request.encode())

        task = SumTask(
            purpose="train",
            round=number,
            next_round=following if state.batches and following <= self._config.rounds else None,
            begin=self._begin,
            terms=self._terms(state.model, self._store.get(state.model).size),
            share=self._share(state.model),
            upload=upload,
        )
        combination = self._secure.combine
        cohorts = self._cohorts(batch, present, planned_cohorts(len(batch), combination))
        spare = sorted(set(present) - set(batch))
        numpy_generator(self._config.seed, "spare", number).shuffle(spare)
        progress.asked = sum(map(len, cohorts))
        believed = self._collect(task, cohorts, spare, progress)
        figures = _added(believed)
        progress.answered = sum(cohort.devices for cohort in believed)
        progress.steps = round(figures.get("steps", 0))
        if "loss" in figures:
            progress.train_loss = figures["loss"] / progress.answered
        needed = fewest_cohorts(combination)
        if len(believed) < needed:
            raise RoundFailed(
                f"Round {number}: {len(believed)} of {len(cohorts)} cohorts are left, and a "
                f"{combination} needs {needed}."
            )
        return combine(
            [cohort.mean for cohort in believed],
            [cohort.weight for cohort in believed],
            combination,
        )

    def validate(
        self, state: FederationState, present: Sequence[str], progress: RoundProgress
    ) -> None:
        """Let the devices validate `state`'s model; the progress gets their mean loss.

        Raises:
            RoundFailed: too few devices are in the sums.
        """

        def upload(request: UploadRequest) -> MaskedEvaluateRequest:
            return MaskedEvaluateRequest(state.model, state.round, self._text, request.encode())

        rounds = self._config.rounds
        later = (r for r in range(state.round + 1, rounds + 1) if is_due(self._config, r))
        task = SumTask(
            purpose="evaluate",
            round=state.round,
            next_round=next(later, None),
            begin=_nothing,
            terms=self._terms(state.model, 0),
            share=self._share(state.model),
            upload=upload,
        )
        figures = _added(self._collect(task, self._cohorts(present, present, 1), (), progress))
        if figures["examples"]:
            progress.validation_loss = figures["loss"] / figures["examples"]

    def _collect(
        self,
        task: SumTask,
        cohorts: Sequence[Sequence[str]],
        spare: Sequence[str],
        progress: RoundProgress,
    ) -> list[_Cohort]:
        """Return what the cohorts' sums say, those left out that cannot be believed.

        Raises:
            RoundFailed: too few devices are in the sums.
            FedspkError: the task may not even begin.
        """
        sums, tally = self._sums.collect(task, cohorts, spare, progress)
        progress.bytes_up += tally.bytes_up
        progress.bytes_down += tally.bytes_down
        if not sums:
            attempts = "1 attempt" if tally.attempts == 1 else f"{tally.attempts} attempts"
            raise RoundFailed(
                f"Round {task.round}: no secure sum was finished in {attempts}: {tally.reasons[0]}"
            )
        believed = []
        for each in sums:
            try:
                believed.append(_opened(each))
            except FedspkError as error:
                progress.failures.append(f"cohort {each.terms.cohort}: {error}")
        asked = sum(map(len, cohorts))
        answered = sum(cohort.devices for cohort in believed)
        figures = _added(believed)
        progress.training_seconds += figures.get("seconds", 0.0)
        progress.secure.append(
            SumRecord(
                purpose=task.purpose,
                cohorts=tuple(each.terms.clients for each in sums),
                survivors=tuple(len(each.survivors) for each in sums),
                attempts=tally.attempts,
                discarded=len(sums) - len(believed),
                clipped=figures["clipped"] / answered if "clipped" in figures else None,
                seconds={name: round(value, 6) for name, value in tally.seconds.items()},
                bytes_down=tally.bytes_down,
                bytes_up=tally.bytes_up,
            )
        )
        require_replies(answered, asked, self._config, task.round, progress.failures)
        return believed

    def _begin(self, devices: Sequence[str]) -> None:
        if self._ledger is not None:
            self._ledger.plan(devices)

    def _terms(self, model: str, size: int) -> Callable[[OfferRequest, int, int], Terms]:
        def terms(instance: OfferRequest, cohort: int, clients: int) -> Terms:
            return sum_terms(
                self._secure,
                instance,
                cohort=cohort,
                model=model,
                config=sha256(self._text.encode()).hexdigest(),
                size=size,
                clients=clients,
            )

        return terms

    def _share(self, model: str) -> Callable[[ShareRequest], SumShareRequest]:
        return lambda request: SumShareRequest(request.encode(), model, self._text)

    def _cohorts(
        self, batch: Sequence[str], present: Sequence[str], fewest: int
    ) -> list[list[str]]:
        """Divide a batch by position: whoever is away, the others' cohort stays the same."""
        count = max(fewest, math.ceil(len(batch) / self._secure.cohort_size))
        there = set(present)
        parts = ([device for device in batch[k::count] if device in there] for k in range(count))
        return [sorted(part) for part in parts if part]


def _nothing(_: Sequence[str]) -> None:
    pass


@dataclass(frozen=True)
class _Cohort:
    """What a cohort's sum says: the mean delta (n,), its weight, the sums of the figures."""

    devices: int
    mean: Float64Array
    weight: float
    figures: Mapping[str, float]


def _opened(cohort: CohortSum) -> _Cohort:
    """Return what a cohort's sum says.

    Raises:
        FedspkError: honest devices cannot have made it.
    """
    terms, devices = cohort.terms, len(cohort.survivors)
    total = decode_total(terms, cohort.total, devices)
    weight = total.figures.get("weight", devices)  # with noise, every device weighs one
    if not weight > 0:
        raise FedspkError("The weights of a cohort add up to nothing.")
    quantiser = terms.quantiser
    mean = total.values
    mean /= weight
    # Each device's noise is in steps of which `levels` make the norm.
    noise = terms.noise_scale * math.sqrt(devices) * terms.norm / quantiser.levels / weight
    rounding = quantiser.rounding_error(devices) / weight
    require_norm(mean, largest_norm(terms.norm, terms.size, rounding_error=rounding, noise=noise))
    return _Cohort(devices, mean, weight, total.figures)


def _added(cohorts: Iterable[_Cohort]) -> dict[str, float]:
    """Return the figures of all cohorts together."""
    sums: dict[str, float] = {}
    for cohort in cohorts:
        for name, value in cohort.figures.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
