"""What a device computes: one federated round, its own model, the federated model made personal.

No Flower here. A round's outcome is a flat float32 vector and a weight: the seam where secure
aggregation takes over. Everything of the model that is not shared (the local head, running
statistics) is a file in the device's folder, one for each round, so that an interrupted run can
repeat a round and the best round can be restored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clients.batches import DeviceBatches
from clients.dataset import DeviceDataset, Variants
from clients.impostors import VALIDATION_BATCH, ImpostorSource, impostor_source
from fedspk.errors import FedspkError
from fedspk.model import SpeakerModel
from fedspk.rounds import RunConfig
from fedspk.run_model import all_names, device_model, shared_names
from fedspk.seeds import derive
from fedspk.training import TrainingConfig, TrainingResult, fit
from fedspk.weights import FloatVector, flatten, load_model, save_model, unflatten

_OWNER_ROW = "head.classes.device"


@dataclass(frozen=True)
class LocalUpdate:
    """A round on one device: the delta (n,) float32, its weight, and what the training did."""

    delta: FloatVector
    weight: float
    result: TrainingResult


@dataclass(frozen=True)
class PersonalPlan:
    """How a device trains for itself: to its own best by validation.

    `learning_rate` None takes the run's; `proximal_mu` pulls towards the start.

    Raises:
        FedspkError: a number is out of range.
    """

    steps: int = 400
    validate_every: int = 20
    patience: int = 5
    learning_rate: float | None = None
    proximal_mu: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validate_every < 1 or self.patience < 0:
            raise FedspkError(
                f"personal training: steps is {self.steps}, validate_every {self.validate_every}, "
                f"patience {self.patience}; the first two must be positive, the last not negative."
            )


@dataclass(frozen=True)
class PersonalModel:
    """A device's own model: all its parameters (see `all_names`) as one vector (n,) float32.

    `best_step` 0 means that nothing was better than the start.
    """

    vector: FloatVector
    result: TrainingResult
    start_loss: float
    best_step: int


def restored_model(
    dataset: DeviceDataset, vector: FloatVector, config: RunConfig, *, round_number: int
) -> SpeakerModel:
    """Return the model after `round_number`: the shared vector and the device's private parts.

    The private parts are the last that the device had by then, or the initial ones: an owner's
    private class row then starts at the mean of the owner's embeddings.

    Raises:
        FedspkError: the vector or the private parts belong to another network.
    """
    model = device_model(config, dataset.index)
    state = model.state_dict()
    model.load_parameters(unflatten(vector, state, shared_names(model, config)))
    private = _private_names(model, config)
    path = _private_file(dataset, config, round_number) if private else None
    if path is not None:
        parts, _ = load_model(path, {name: state[name] for name in private})
        model.load_parameters({name: parts[name] for name in private})
    elif _OWNER_ROW in private:
        _imprint_owner(model, dataset)
    return model


@torch.inference_mode()
def _imprint_owner(model: SpeakerModel, dataset: DeviceDataset) -> None:
    """Start the owner's class row at the mean embedding of the training utterances.

    Source: Qi, Brown and Lowe, "Low-shot learning with imprinted weights", CVPR 2018.
    """
    rows = np.array([variants[0] for variants in dataset.owner_train], dtype=np.int64)
    model.eval()
    embeddings = torch.nn.functional.normalize(model(dataset.table.gather(rows)), dim=1)
    mean = torch.nn.functional.normalize(embeddings.mean(dim=0, keepdim=True), dim=1)
    model.load_parameters({_OWNER_ROW: mean})


def personal_model(
    dataset: DeviceDataset, personal: FloatVector, config: RunConfig
) -> SpeakerModel:
    """Return the model of `PersonalModel.vector`."""
    model = device_model(config, dataset.index)
    model.load_parameters(unflatten(personal, model.state_dict(), all_names(model)))
    return model


def local_update(
    dataset: DeviceDataset,
    vector: FloatVector,
    config: RunConfig,
    *,
    round_number: int,
    best_round: int = 0,
) -> LocalUpdate:
    """Train for one round from the shared `vector` (n,) float32 and return the difference.

    The weight is the count of the owner's training utterances. With `proximal_mu` the loss has
    FedProx's term (Li et al. 2020, equation 2). The private parts go to the device's folder;
    those that neither this round nor `best_round` can need any more are deleted.

    Raises:
        FedspkError: the training diverges, or data and configuration do not fit.
    """
    if round_number == 1:
        forget_private_parts(dataset, config)
    model = restored_model(dataset, vector, config, round_number=round_number - 1)
    names = shared_names(model, config)
    source = device_batches(dataset, model, config)
    training = _round_training(dataset, source, config, round_number)
    reference = None
    if config.proximal_mu:
        reference = {
            name: value.detach().clone()
            for name, value in model.named_parameters()
            if name in set(names)
        }
    seed = derive(config.seed, "train", dataset.device, round_number)
    result = fit(model, source, training, seed=seed, reference=reference)
    _save_private(dataset, model, config, round_number, best_round)
    delta = flatten(model.state_dict(), names) - vector
    return LocalUpdate(delta.astype(np.float32), float(len(dataset.owner_train)), result)


def validation_loss(
    dataset: DeviceDataset, vector: FloatVector, config: RunConfig, *, round_number: int
) -> tuple[float, int]:
    """Return the loss of the model after `round_number` on validation data, and how many clips."""
    validation = _validation(dataset, config)
    if validation is None:
        return math.nan, 0
    model = restored_model(dataset, vector, config, round_number=round_number)
    model.eval()
    with torch.inference_mode():
        return validation(model), validation.clips


def train_individual(
    dataset: DeviceDataset, vector: FloatVector, config: RunConfig, plan: PersonalPlan
) -> PersonalModel:
    """Train the device's own model from the shared `vector` and fresh private parts."""
    model = restored_model(dataset, vector, config, round_number=0)
    return _personal(dataset, model, config, plan, "individual")


def personalise(
    dataset: DeviceDataset,
    vector: FloatVector,
    config: RunConfig,
    plan: PersonalPlan,
    *,
    round_number: int,
) -> PersonalModel:
    """Train on from the federated model after `round_number`, private parts included."""
    model = restored_model(dataset, vector, config, round_number=round_number)
    return _personal(dataset, model, config, plan, "personalise")


def forget_private_parts(dataset: DeviceDataset, config: RunConfig) -> None:
    """Delete what an earlier run of the same name left in the device's folder."""
    for path in _private_files(dataset, config).values():
        path.unlink(missing_ok=True)


def device_batches(dataset: DeviceDataset, model: SpeakerModel, config: RunConfig) -> DeviceBatches:
    """Return the device's training batches.

    Raises:
        FedspkError: the run's impostors are not to be had, or one is no public speaker of the run.
    """
    return DeviceBatches(
        dataset,
        model.owner_label,
        impostor_source(config, dataset),
        owner_fraction=config.owner_fraction,
        crop_frames=config.crop_frames,
    )


def _personal(
    dataset: DeviceDataset, model: SpeakerModel, config: RunConfig, plan: PersonalPlan, arm: str
) -> PersonalModel:
    validation = _validation(dataset, config)
    if validation is None:
        raise FedspkError(f"{dataset.device}: owner_validation is empty; it needs one utterance.")
    names = all_names(model)
    start = flatten(model.state_dict(), names)
    model.eval()
    with torch.inference_mode():
        start_loss = validation(model)
    training = _personal_training(config, plan)
    reference = {name: value.detach().clone() for name, value in model.named_parameters()}
    result = fit(
        model,
        device_batches(dataset, model, config),
        training,
        seed=derive(config.seed, arm, dataset.device),
        validation=validation,
        validate_every=plan.validate_every,
        reference=reference if plan.proximal_mu else None,
    )
    best = result.best_validation_loss
    if best is None or best >= start_loss:
        return PersonalModel(start, result, start_loss, 0)
    return PersonalModel(flatten(model.state_dict(), names), result, start_loss, result.best_step)


def _personal_training(config: RunConfig, plan: PersonalPlan) -> TrainingConfig:
    training = replace(
        _training(config, plan.steps), patience=plan.patience, proximal_mu=plan.proximal_mu
    )
    if plan.learning_rate is None:
        return training
    ratio = config.final_learning_rate / config.learning_rate  # another first rate keeps it
    return replace(
        training,
        learning_rate=plan.learning_rate,
        final_learning_rate=plan.learning_rate * ratio,
    )


def _training(config: RunConfig, steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        final_learning_rate=config.final_learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        proximal_mu=config.proximal_mu,
        optimiser=config.local_optimiser,
        clip_norm=config.clip_norm,
        frozen_statistics=config.frozen_statistics,
        precision=config.precision,
    )


def _round_training(
    dataset: DeviceDataset, source: DeviceBatches, config: RunConfig, round_number: int
) -> TrainingConfig:
    owners = source.owner_count(config.batch_size)
    epoch_steps = config.local_epochs * len(dataset.owner_train) / owners
    training = _training(config, config.local_steps or max(1, math.ceil(epoch_steps)))
    if config.decay == "round":
        return training
    progress = (round_number - 1) / max(1, config.rounds - 1)
    ratio = config.final_learning_rate / config.learning_rate
    rate = config.learning_rate * ratio**progress
    return replace(training, learning_rate=rate, final_learning_rate=rate)


@dataclass(frozen=True)
class _Validation:
    """The validation loss as a function: half the owner's mean, half the impostors'."""

    dataset: DeviceDataset
    impostors: ImpostorSource | None

    @property
    def clips(self) -> int:
        """How many clips are listened to."""
        owner = len(_rows(self.dataset.owner_validation))
        return owner + (self.impostors.held_back if self.impostors else 0)

    def __call__(self, model: SpeakerModel) -> float:
        parts = [_mean_loss(model, _owner_batches(self.dataset, model.owner_label))]
        if self.impostors and self.impostors.held_back:
            parts.append(_mean_loss(model, self.impostors.validation()))
        return sum(parts) / len(parts)


def _validation(dataset: DeviceDataset, config: RunConfig) -> _Validation | None:
    if not dataset.owner_validation:
        return None
    return _Validation(dataset, impostor_source(config, dataset))


def _mean_loss(model: SpeakerModel, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    total, clips = 0.0, 0
    for features, classes in batches:
        total += float(model.loss(features, classes)) * len(classes)
        clips += len(classes)
    return total / clips


def _owner_batches(dataset: DeviceDataset, label: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = _rows(dataset.owner_validation)
    for start in range(0, len(rows), VALIDATION_BATCH):
        part = np.array(rows[start : start + VALIDATION_BATCH], dtype=np.int64)
        yield dataset.table.gather(part), torch.full((len(part),), label)


def _rows(utterances: tuple[Variants, ...]) -> list[int]:
    return [row for variants in utterances for row in variants]


def _private_names(model: SpeakerModel, config: RunConfig) -> list[str]:
    shared = set(shared_names(model, config))
    return [name for name in all_names(model) if name not in shared]


def _private_files(dataset: DeviceDataset, config: RunConfig) -> dict[int, Path]:
    pattern = re.compile(rf"{re.escape(config.name)}-round-(\d+)\.safetensors")
    found = {}
    for path in dataset.folder.glob("*.safetensors"):
        if match := pattern.fullmatch(path.name):
            found[int(match[1])] = path
    return found


def _private_file(dataset: DeviceDataset, config: RunConfig, round_number: int) -> Path | None:
    files = _private_files(dataset, config)
    usable = [number for number in files if 0 < number <= round_number]
    return files[max(usable)] if usable else None


def _save_private(
    dataset: DeviceDataset, model: SpeakerModel, config: RunConfig, round_number: int, best: int
) -> None:
    private = _private_names(model, config)
    if not private:
        return
    state = model.state_dict()
    path = dataset.folder / f"{config.name}-round-{round_number:05d}.safetensors"
    save_model(path, {name: state[name] for name in private}, {"round": str(round_number)})
    files = _private_files(dataset, config)
    needed = max((number for number in files if number <= best), default=0)
    for number, old in files.items():
        if number < needed:
            old.unlink(missing_ok=True)
