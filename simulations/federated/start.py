"""Where every arm begins: a given model, one trained on public speech, or random weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from fedspk import __version__
from fedspk.corpora import Utterance
from fedspk.engine import HEARD, ModelDescription, load_described, save_described
from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json
from fedspk.model import SpeakerModel
from fedspk.parallel import one_torch_thread
from fedspk.rounds import RunConfig
from fedspk.training import TrainingResult, fit_head
from fedspk.weights import load_model
from gan.generator_file import generator_origin
from gan.invented import learn_classes, run_voices
from simulations.federated.central import (
    class_model,
    load_classes,
    pretrain,
    train_pooled,
)
from simulations.federated.config import ExperimentConfig
from simulations.federated.plan import Plan
from simulations.federated.results import ArmCost
from simulations.federated.scoring import embed_rows

_COPIES_HEARD = 2  # of every utterance, for the classes of a given model


def starting_model(
    config: ExperimentConfig, plan: Plan, folder: Path
) -> tuple[SpeakerModel, ArmCost]:
    """Return the model that every arm starts from, made once and kept in `folder`.

    Raises:
        FedspkError: the given model is not of the configured encoder and front end.
    """
    run = config.arm("initial", config.impostors[0], plan.public.classes)
    path = folder / "initial.safetensors"
    if not path.exists():
        if config.init is not None:
            model, cost = _given(config, run, plan), ArmCost()
        elif config.start == "random":
            model, cost = class_model(run, public=plan.public.classes, devices=0), ArmCost()
        else:
            model, result = pretrain(plan.public, run, config.pretrain)
            cost = _cost(result)
        save_made(path, model, config, run, cost)
    return load_classes(path, run), ArmCost(**read_json(path.with_suffix(".json")))


def with_invented_classes(start: SpeakerModel, config: ExperimentConfig) -> SpeakerModel:
    """Return the starting model with a class for every invented speaker in the public ones' place.

    `gan.invented.learn_classes` says how they begin.
    """
    run = config.arm("individual", "gan")
    model = class_model(run, public=run.public, devices=0)
    state = start.state_dict()
    model.load_parameters({n: value for n, value in state.items() if n.startswith("encoder.")})
    learn_classes(model, run_voices(config.generator, run))
    return model.eval()


def pooled_model(
    config: ExperimentConfig, plan: Plan, start: SpeakerModel, folder: Path
) -> tuple[Path, ArmCost]:
    """Train the pooled model once; return its file and what it cost."""
    run = config.arm("pooled", config.impostors[0], plan.public.classes)
    path = folder / "pooled.safetensors"
    if not path.exists():
        model, result = train_pooled(plan, start, run, config.pooled)
        save_made(path, model, config, run, _cost(result))
    return path, ArmCost(**read_json(path.with_suffix(".json")))


def describe(config: ExperimentConfig, run: RunConfig) -> ModelDescription:
    """Return what a model of this experiment is made of."""
    return ModelDescription(run.encoder, config.front_end, dict(run.encoder_params))


def check_init(config: ExperimentConfig) -> None:
    """Check, before anything long begins, that the given model will do.

    Raises:
        FedspkError: there is none, or it is not of the configured encoder and front end.
    """
    if config.init is None:
        return
    run = config.arm("initial", config.impostors[0])
    description, _ = load_described(config.init)
    if description != describe(config, run):
        raise FedspkError(
            f"{config.init}: holds encoder {description.encoder} with {description.front_end}, "
            f"not {run.encoder} with {config.front_end}; give --encoder {description.encoder} "
            "and the same front end."
        )


def check_unheard(config: ExperimentConfig, tested: Iterable[Utterance]) -> None:
    """Check that no given model was trained on speech that this experiment tests with.

    Raises:
        FedspkError: one was.
    """
    marks = [utterance.mark for utterance in tested]
    for path, heard in _heard(config):
        if common := sum(mark in heard for mark in marks):
            raise FedspkError(
                f"{path}: was trained on {common} of the utterances that this experiment tests "
                "with; train it on other speakers."
            )


def _heard(config: ExperimentConfig) -> Iterator[tuple[Path, set[str]]]:
    """Yield every given model with the marks of the utterances that it was trained on."""
    if config.init is not None:
        _, metadata = load_model(config.init)
        yield config.init, set(metadata.get(HEARD, "").split())
    if "gan" in config.impostors:
        yield config.generator, set(generator_origin(config.generator)["heard"])


def _given(config: ExperimentConfig, run: RunConfig, plan: Plan) -> SpeakerModel:
    assert config.init is not None
    _, state = load_described(config.init)
    model = class_model(run, public=plan.public.classes, devices=0)
    model.load_parameters({n: value for n, value in state.items() if n.startswith("encoder.")})
    data = plan.public.train
    heard = [
        (row, label)
        for copies, label in zip(data.utterances, data.labels, strict=True)
        for row in copies[:_COPIES_HEARD]
    ]
    rows, labels = zip(*heard, strict=True)
    embeddings = embed_rows(model.encoder, plan.public.table, rows)
    with one_torch_thread():
        fit_head(model, torch.from_numpy(embeddings), torch.tensor(labels))
    return model.eval()


def save_made(
    path: Path,
    model: SpeakerModel,
    config: ExperimentConfig,
    run: RunConfig,
    cost: ArmCost,
    parent: str = "",
) -> None:
    """Write a model that can start other runs, what it cost, and how it was made.

    Args:
        parent: hash of the model it was trained from.
    """
    # The cost first: once the model is there, everything is.
    write_json(path.with_suffix(".json"), vars(cost))
    metadata = {
        "fedspk.made_by": f"simulate {path.stem}",
        "fedspk.version": __version__,
        "fedspk.parent": parent,
        "fedspk.config": config.model_dump_json(),
    }
    save_described(path, model, describe(config, run), metadata)


def _cost(result: TrainingResult) -> ArmCost:
    return ArmCost(
        steps=result.steps,
        seconds=result.seconds,
        best_step=result.best_step,
        at_limit=float(result.best_step == result.steps),
    )
