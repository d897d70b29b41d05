"""Where every arm begins: a given model, one trained on public speech, or random weights."""

from __future__ import annotations

from pathlib import Path

from fedspk.engine import ModelDescription, load_described, save_described
from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json
from fedspk.model import SpeakerModel
from fedspk.rounds import RunConfig
from fedspk.training import TrainingResult
from fedspk.weights import content_hash
from simulations.federated.central import (
    class_model,
    imprint,
    load_classes,
    pretrain,
    train_pooled,
)
from simulations.federated.config import ExperimentConfig
from simulations.federated.plan import Plan
from simulations.federated.results import ArmCost


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
        _save(path, model, config, run, cost)
    return load_classes(path, run), ArmCost(**read_json(path.with_suffix(".json")))


def pooled_model(
    config: ExperimentConfig, plan: Plan, start: SpeakerModel, folder: Path
) -> tuple[Path, ArmCost]:
    """Train the pooled model once; return its file and what it cost."""
    run = config.arm("pooled", config.impostors[0], plan.public.classes)
    path = folder / "pooled.safetensors"
    if not path.exists():
        model, result = train_pooled(plan, start, run, config.pooled)
        _save(path, model, config, run, _cost(result))
    return path, ArmCost(**read_json(path.with_suffix(".json")))


def describe(config: ExperimentConfig, run: RunConfig) -> ModelDescription:
    """Return what a model of this experiment is made of."""
    return ModelDescription(run.encoder, config.front_end, dict(run.encoder_params))


def _given(config: ExperimentConfig, run: RunConfig, plan: Plan) -> SpeakerModel:
    assert config.init is not None
    description, state = load_described(config.init)
    if description != describe(config, run):
        raise FedspkError(
            f"{config.init}: holds encoder {description.encoder} with {description.front_end}, "
            f"not {run.encoder} with {config.front_end}; give --encoder {description.encoder} "
            "and the same front end."
        )
    model = class_model(run, public=plan.public.classes, devices=0)
    model.load_parameters({n: value for n, value in state.items() if n.startswith("encoder.")})
    imprint(model, "head.classes.public", plan.public.table, plan.public.train)
    return model.eval()


def _save(
    path: Path, model: SpeakerModel, config: ExperimentConfig, run: RunConfig, cost: ArmCost
) -> None:
    # The cost first: once the model is there, everything is.
    write_json(path.with_suffix(".json"), vars(cost))
    metadata = {
        "fedspk.made_by": "simulate",
        "fedspk.seed": str(config.seed),
        "fedspk.config": content_hash(config.model_dump_json().encode()),
    }
    save_described(path, model, describe(config, run), metadata)


def _cost(result: TrainingResult) -> ArmCost:
    return ArmCost(steps=result.steps, seconds=result.seconds)
