"""Training in one place: version 1 on public speech, and the pooled arm on everybody's.

The pooled model is what no deployment may do, namely to gather all speech; it is the bound that a
federation should approach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.batches import random_crops
from fedspk.feature_table import FeatureTable
from fedspk.model import HeadConfig, HeadKind, SpeakerModel
from fedspk.parallel import one_torch_thread
from fedspk.progress import progress
from fedspk.rounds import RunConfig
from fedspk.run_model import run_network
from fedspk.seeds import derive, numpy_generator
from fedspk.training import TrainingConfig, TrainingResult, fit
from fedspk.weights import load_model
from simulations.federated.config import CentralTraining
from simulations.federated.plan import LabelledRows, Plan, PublicRows, Rows
from simulations.federated.scoring import embed_rows

_BATCH = 64


class BalancedBatches:
    """A `BatchSource` that draws a class, one of its utterances, a row of it and a crop."""

    def __init__(self, table: FeatureTable, data: LabelledRows, crop_frames: int | None) -> None:
        self._table, self._crop_frames = table, crop_frames
        groups: dict[int, list[Rows]] = {}
        for rows, label in zip(data.utterances, data.labels, strict=True):
            groups.setdefault(label, []).append(rows)
        self._groups = sorted(groups.items())

    def batches(self, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (B, T, F) float32 and labels (B,) int64 without end, drawn by `seed`."""
        generator = numpy_generator(seed, "central")
        while True:
            chosen = [
                self._groups[i] for i in generator.integers(len(self._groups), size=batch_size)
            ]
            picked = [utterances[generator.integers(len(utterances))] for _, utterances in chosen]
            rows = [variants[generator.integers(len(variants))] for variants in picked]
            features = random_crops(self._table.gather(rows), self._crop_frames, generator)
            yield features, torch.tensor([label for label, _ in chosen])


def pretrain(
    public: PublicRows, run: RunConfig, settings: CentralTraining
) -> tuple[SpeakerModel, TrainingResult]:
    """Train an encoder to tell the public speakers apart; the best by validation loss is kept."""
    model = class_model(run, public=public.classes, devices=0)
    return model, _train(model, public, run, settings, "pretrain")


def train_pooled(
    plan: Plan, start: SpeakerModel, run: RunConfig, settings: CentralTraining
) -> tuple[SpeakerModel, TrainingResult]:
    """Train on everybody's training speech, each owner a class after the public speakers'."""
    public = plan.public
    model = class_model(run, public=public.classes, devices=len(plan.owners))
    model.load_parameters(shared_state(start, model))
    owners = LabelledRows(
        tuple(rows for owner in plan.owners for rows in owner.train),
        tuple(index for index, owner in enumerate(plan.owners) for _ in owner.train),
    )
    imprint(model, "head.classes.device", public.table, owners)
    train, validation = public.train, public.validation
    for index, owner in enumerate(plan.owners):
        train = _with_owner(train, owner.train, public.classes + index)
        validation = _with_owner(validation, owner.validation, public.classes + index)
    everybody = replace(public, train=train, validation=validation)
    return model, _train(model, everybody, run, settings, "pooled")


def load_classes(path: Path, run: RunConfig) -> SpeakerModel:
    """Return a model of this module from its file: an encoder and a class for every speaker."""
    state, _ = load_model(path)
    public, devices = (len(state[f"head.classes.{rows}"]) for rows in ("public", "device"))
    model = class_model(run, public=public, devices=devices)
    model.load_parameters(state)
    return model.eval()


def imprint(model: SpeakerModel, name: str, table: FeatureTable, data: LabelledRows) -> None:
    """Set each class's vector to its utterances' mean embedding, length 1.

    Source: Qi, Brown and Lowe, "Low-shot learning with imprinted weights", CVPR 2018.
    """
    embeddings = embed_rows(model.encoder, table, [rows[0] for rows in data.utterances])
    unit = F.normalize(torch.from_numpy(embeddings), dim=1)
    sums = torch.zeros_like(model.state_dict()[name])
    sums.index_add_(0, torch.tensor(data.labels), unit)
    model.load_parameters({name: F.normalize(sums, dim=1)})


def shared_state(start: SpeakerModel, model: SpeakerModel) -> dict[str, Tensor]:
    """Return the tensors of `start` that `model` has too, in the same shape."""
    wanted = model.state_dict()
    return {
        name: value
        for name, value in start.state_dict().items()
        if name in wanted and wanted[name].shape == value.shape
    }


def class_head(run: RunConfig) -> HeadKind:
    """Return the loss over classes that goes with a run: the run's own, or plain softmax."""
    return "softmax" if run.head_kind == "binary" else run.head_kind


def class_model(run: RunConfig, public: int, devices: int) -> SpeakerModel:
    """Return the run's encoder with a learned class for every public speaker and device."""
    head = HeadConfig(
        kind=class_head(run), public=public, devices=devices, scale=run.scale, margin=run.margin
    )
    return run_network(run, head)


def _train(
    model: SpeakerModel,
    data: PublicRows,
    run: RunConfig,
    settings: CentralTraining,
    name: str,
) -> TrainingResult:
    config = TrainingConfig(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        final_learning_rate=settings.final_learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        patience=settings.patience,
        optimiser=settings.optimiser,
        clip_norm=settings.clip_norm,
        frozen_statistics=settings.frozen_statistics,
        precision=run.precision,
    )
    bar = progress(total=config.steps, description=f"Training, {name}", unit="step")
    with bar, one_torch_thread():
        return fit(
            model,
            BalancedBatches(data.table, data.train, run.crop_frames),
            config,
            seed=derive(run.seed, name),
            validation=_validation(data),
            validate_every=settings.validate_every,
            on_step=bar.update,
        )


def _validation(data: PublicRows) -> Callable[[SpeakerModel], float] | None:
    """Return the mean loss over held-out utterances as a function, or None where there are none."""
    pairs = [
        (row, label)
        for rows, label in zip(data.validation.utterances, data.validation.labels, strict=True)
        for row in rows
    ]

    def loss(model: SpeakerModel) -> float:
        total = 0.0
        for start in range(0, len(pairs), _BATCH):
            rows, labels = zip(*pairs[start : start + _BATCH], strict=True)
            batch_loss = model.loss(data.table.gather(rows), torch.tensor(labels))
            total += float(batch_loss) * len(rows)
        return total / len(pairs)

    return loss if pairs else None


def _with_owner(data: LabelledRows, utterances: Sequence[Rows], label: int) -> LabelledRows:
    return LabelledRows(
        data.utterances + tuple(utterances), data.labels + (label,) * len(utterances)
    )
