"""The one local training loop that every arm and every device uses.

SGD with momentum, weight decay and logarithmic decay of the rate; optional validation with early
stopping, which restores the best weights seen; optional proximal term. Same seed, same bits on
one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from fedspk.errors import FedspkError
from fedspk.model import SpeakerModel

Batch: TypeAlias = tuple[Tensor, Tensor]
Precision = Literal["float32", "bfloat16"]
OptimiserKind = Literal["sgd", "adamw"]

_HEAD_STEPS = 300
_HEAD_RATE = 0.01


class BatchSource(Protocol):
    """Where training batches come from."""

    def batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """Yield features (B, T, F) float32 and labels (B,) int64 without end, drawn by `seed`."""
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast to train; the defaults are the paper's.

    Args:
        steps: batches to train on at most.
        patience: validations without improvement before stopping; 0 never stops early.
        proximal_mu: FedProx's weight of half the squared distance to `reference`.
        optimiser: "sgd" with momentum as in the paper, or "adamw" (Loshchilov and Hutter, ICLR
            2019), which trains small networks in far fewer steps; it does not use `momentum`.
        clip_norm: longest gradient (L2 over all parameters); 0 leaves it as it is.
        frozen_statistics: batch normalisation keeps the statistics it has, as if evaluating.
        precision: "bfloat16" runs the encoder under autocast; heads and losses stay float32.
        channels_last: keep images' channels innermost: what convolutions prefer.
    """

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 5e-4
    patience: int = 0
    proximal_mu: float = 0.0
    optimiser: OptimiserKind = "sgd"
    clip_norm: float = 0.0
    frozen_statistics: bool = False
    precision: Precision = "float32"
    channels_last: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise FedspkError(
                f"training needs steps >= 0 and batch_size >= 1, "
                f"got {self.steps} and {self.batch_size}."
            )
        if not 0 < self.final_learning_rate <= self.learning_rate:
            raise FedspkError(
                f"learning_rate {self.learning_rate} must be at least final_learning_rate "
                f"{self.final_learning_rate}, both positive."
            )
        if self.optimiser not in ("sgd", "adamw") or self.clip_norm < 0:
            raise FedspkError(
                f"training needs the optimiser sgd or adamw and clip_norm >= 0, "
                f"got {self.optimiser!r} and {self.clip_norm}."
            )
        if self.precision not in ("float32", "bfloat16"):
            raise FedspkError(f"precision {self.precision!r} is neither float32 nor bfloat16.")


@dataclass(frozen=True)
class HistoryPoint:
    """Where training stood after `step` batches."""

    step: int
    training_loss: float
    """Mean over the batches since the point before."""
    validation_loss: float | None


@dataclass(frozen=True)
class TrainingResult:
    """What a call of `fit` did; the model holds the weights of `best_step`."""

    steps: int
    seconds: float
    best_step: int
    best_validation_loss: float | None
    training_loss: float | None
    """Mean over all batches; None when there were none."""
    history: tuple[HistoryPoint, ...]
    early_stopped: bool


def decayed_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of batch `step` (from 0): lr0 * (lr1 / lr0) ** (step / (T - 1)).

    >>> config = TrainingConfig(steps=3, learning_rate=1.0, final_learning_rate=0.01)
    >>> [round(decayed_rate(step, config), 6) for step in range(3)]
    [1.0, 0.1, 0.01]
    """
    progress = step / max(1, config.steps - 1)
    ratio = config.final_learning_rate / config.learning_rate
    return config.learning_rate * math.pow(ratio, progress)


def fit(
    model: SpeakerModel,
    source: BatchSource,
    config: TrainingConfig,
    *,
    seed: int,
    validation: Callable[[SpeakerModel], float] | None = None,
    validate_every: int = 50,
    reference: Mapping[str, Tensor] | None = None,
    on_step: Callable[[], object] | None = None,
) -> TrainingResult:
    """Train `model` in place on `source.batches(seed, config.batch_size)`.

    Args:
        validation: returns a loss of the model (in evaluation mode, without gradients); asked every
            `validate_every` steps and after the last. The weights with the lowest are restored.
        reference: parameters by name that the proximal term pulls towards (FedProx, Li et al.,
            "Federated optimization in heterogeneous networks", MLSys 2020, equation 2).
        on_step: called after every step, for a progress bar.

    Raises:
        FedspkError: the loss is no longer finite, or the batches end before `config.steps`.
    """
    started = time.perf_counter()
    run = _Run(model, config, validation, reference)
    batches = source.batches(seed, config.batch_size)
    run.train_mode()
    for step in range(config.steps):
        try:
            features, labels = next(batches)
        except StopIteration:
            raise FedspkError(
                f"training batches ended after {step} of {config.steps} steps."
            ) from None
        run.step(step, features, labels)
        if on_step is not None:
            on_step()
        if (step + 1) % validate_every == 0 or step + 1 == config.steps:
            run.record(step + 1)
            if run.out_of_patience:
                break
    run.restore_best()
    model.eval()
    return run.result(time.perf_counter() - started)


def fit_head(model: SpeakerModel, embeddings: Tensor, labels: Tensor) -> None:
    """Train the head alone on embeddings (N, D) float32 of classes (N,) int64, all at once.

    New classes begin thus for an encoder that has been trained: the mean embeddings of its
    speakers lie in a narrow cone, and classes there would throw the first steps off.
    """
    optimiser = torch.optim.Adam(model.head.parameters(), lr=_HEAD_RATE)
    for _ in range(_HEAD_STEPS):
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(model.loss_of_embedding(embeddings, labels))
        optimiser.step()


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        model: SpeakerModel,
        config: TrainingConfig,
        validation: Callable[[SpeakerModel], float] | None,
        reference: Mapping[str, Tensor] | None,
    ) -> None:
        self.model, self.config, self.validation = model, config, validation
        parameters = dict(model.named_parameters())
        self.device = next(iter(parameters.values())).device
        if config.channels_last:
            _to_channels_last(model)
        self.learned = [p for p in parameters.values() if p.requires_grad]
        self.optimiser = _build_optimiser(self.learned, config)
        self.proximal = [
            (parameters[name], value.to(self.device))
            for name, value in ((reference or {}) if config.proximal_mu else {}).items()
        ]
        self.history: list[HistoryPoint] = []
        self.losses: list[Tensor] = []
        self.loss_sum, self.steps = 0.0, 0
        self.best: float | None = None
        self.best_step = 0
        self.best_state: dict[str, Tensor] = {}
        self.worse = 0

    @property
    def out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.worse

    def step(self, step: int, features: Tensor, labels: Tensor) -> None:
        self.optimiser.param_groups[0]["lr"] = decayed_rate(step, self.config)
        features = features.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with self._autocast():
            loss = self.model.loss(features, labels)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for parameter, value in self.proximal:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - value, alpha=self.config.proximal_mu)
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.learned, self.config.clip_norm)
        self.optimiser.step()
        self.losses.append(loss.detach())

    def train_mode(self) -> None:
        self.model.train()
        if self.config.frozen_statistics:
            for module in self.model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def record(self, step: int) -> None:
        losses = torch.stack(self.losses).double()
        self.losses.clear()
        mean = float(losses.mean())
        if not math.isfinite(mean):
            raise FedspkError(
                f"training diverged by step {step} (loss {mean}); lower learning_rate "
                f"{self.config.learning_rate}."
            )
        self.loss_sum += mean * len(losses)
        self.steps = step
        self.history.append(HistoryPoint(step, mean, self._validate(step)))

    def restore_best(self) -> None:
        if self.best_state:
            self.model.load_state_dict(self.best_state)
        else:
            self.best_step = self.steps

    def result(self, seconds: float) -> TrainingResult:
        return TrainingResult(
            steps=self.steps,
            seconds=seconds,
            best_step=self.best_step,
            best_validation_loss=self.best,
            training_loss=self.loss_sum / self.steps if self.steps else None,
            history=tuple(self.history),
            early_stopped=self.steps < self.config.steps,
        )

    def _validate(self, step: int) -> float | None:
        if self.validation is None:
            return None
        self.model.eval()
        with torch.no_grad(), self._autocast():
            value = float(self.validation(self.model))
        self.train_mode()
        if not math.isfinite(value):
            raise FedspkError(f"validation loss is {value} at step {step}; lower learning_rate.")
        if self.best is None or value < self.best:
            self.best, self.best_step, self.worse = value, step, 0
            self.best_state = {name: t.clone() for name, t in self.model.state_dict().items()}
        else:
            self.worse += 1
        return value

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _build_optimiser(
    parameters: list[torch.nn.Parameter], config: TrainingConfig
) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)


def _to_channels_last(model: SpeakerModel) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
