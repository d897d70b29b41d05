"""The arms of the experiment, each from the same start to every device's trial scores.

Whatever an arm finishes is a file in its folder, so an interrupted run goes on where it stopped:
the model that all devices share, or one device's scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.federation import FederationResult, run_federation
from aggregator.record import RoundRecord
from aggregator.robust import planned_cohorts
from aggregator.rounds import WeightedMean
from aggregator.secure_sums import SumStage
from clients.client_app import MINIMUM_COHORT
from clients.dataset import DeviceDataset
from clients.enrolment import REGISTER_FILE
from clients.local import (
    PersonalModel,
    PersonalPlan,
    personal_model,
    personalise,
    restored_model,
    train_individual,
)
from fedspk import run_model
from fedspk.files import read_json, write_json
from fedspk.model import SpeakerModel
from fedspk.progress import progress
from fedspk.rounds import RunConfig
from fedspk.run_model import device_model, require_whole_encoder, shared_names
from fedspk.secagg.parameters import full_graph
from fedspk.weights import FloatVector, WeightStore, flatten
from simulations.executors import Executor
from simulations.federated.central import load_classes, shared_state
from simulations.federated.plan import device_path
from simulations.federated.results import ArmCost
from simulations.federated.scoring import score_device
from simulations.federated.trials import DeviceScores, load_scores, save_scores
from simulations.grid import LocalGrid, UserConfig

CLIENT_APP = "clients.client_app:app"


@dataclass(frozen=True)
class Scored:
    """One arm in one fold: every device's scores, the cost, the learning curve.

    `privacy` says in words what noise on the updates guarantees.
    """

    devices: tuple[DeviceScores, ...]
    cost: ArmCost
    history: tuple[dict[str, Any], ...] = ()
    privacy: str | None = None


@dataclass(frozen=True)
class Stage:
    """Where the arms of one fold work: the saved plan, and the executor."""

    folder: Path
    devices: int
    executor: Executor

    def store(self, run: RunConfig) -> WeightStore:
        """Return the models of one arm."""
        return WeightStore(self.folder / "store" / run.name)

    def put(self, start: SpeakerModel, run: RunConfig) -> str:
        """Store what all devices begin with: `start`'s weights in the run's network.

        Raises:
            FedspkError: a part of the encoder would not travel.
        """
        require_whole_encoder(run)
        model = device_model(run)
        model.load_parameters(shared_state(start, model))
        return self.store(run).put(flatten(model.state_dict(), shared_names(model, run)))


@dataclass(frozen=True)
class _Task:
    """One device's part of an arm; small enough to send to a worker."""

    folder: Path
    arm: str
    index: int
    model: str
    run: str
    plan: PersonalPlan | None = None
    round: int = 0
    classifier: bool = True

    @property
    def scores(self) -> Path:
        return self.folder / "arms" / self.arm / f"device-{self.index:04d}.npz"

    @property
    def record(self) -> Path:
        return self.scores.with_suffix(".json")


def run_initial(stage: Stage, start: SpeakerModel, run: RunConfig) -> Scored:
    """Score the model that every device starts from; it has no class for any owner."""
    model = stage.put(start, run)
    return _on_devices(stage, _score_shared, "initial", model, run, classifier=False)


def run_individual(stage: Stage, start: SpeakerModel, run: RunConfig, plan: PersonalPlan) -> Scored:
    """Train every device's own model from the start, to its best by validation."""
    model = stage.put(start, run)
    return _on_devices(stage, _train_individual, run.name, model, run, plan=plan)


def run_averaged(stage: Stage, run: RunConfig, name: str) -> Scored:
    """Average the finished individual models once, Algorithm 1 of the paper in one round.

    Args:
        run: the individual arm's, which has been run.
        name: this arm's.
    """
    store = stage.store(run)
    tasks = [_Task(stage.folder, run.name, i, "", "") for i in range(stage.devices)]
    vectors = [store.get(read_json(task.record)["model"]) for task in tasks]
    mean = WeightedMean(vectors[0].size)
    for task, vector in zip(tasks, vectors, strict=True):
        mean.add(vector, len(_dataset(task).owner_train))
    model = store.put(mean.mean().astype(np.float32))
    scored = _on_devices(stage, _score_shared, name, model, run)
    finished = _gather(tasks).cost
    traffic = 2 * stage.devices * vectors[0].nbytes
    return replace(scored, cost=replace(finished, bytes=traffic))


def run_federated(
    stage: Stage, start: SpeakerModel, run: RunConfig
) -> tuple[Scored, FederationResult]:
    """Train together, round by round, and score the best round's model on every device."""
    store = stage.store(run)
    policy = _policy(run, stage.devices)
    paths = [device_path(stage.folder, index) for index in range(stage.devices)]
    nodes: list[UserConfig] = [{"device": str(path), **policy} for path in paths]
    grid = LocalGrid(CLIENT_APP, nodes, stage.executor, run_config={"store": str(store.root)})
    initial = stage.put(start, run)
    with progress(total=run.rounds, description=f"Arm {run.name}", unit="round") as bar:

        def show(record: RoundRecord) -> None:
            bar.update(record.round - bar.n)

        def show_stage(done: SumStage) -> None:
            bar.set_postfix_str(f"{done.name} {done.answered}/{done.asked}", refresh=False)

        with grid.explained():
            result = run_federation(
                grid,
                run,
                store,
                stage.folder / "checkpoints" / run.name,
                initial=initial,
                register=paths[0].with_name(REGISTER_FILE),
                workers=stage.executor.workers,
                on_round=show,
                on_stage=show_stage,
            )
    scored = _on_devices(stage, _score_shared, run.name, result.model, run, round=result.best_round)
    cost = ArmCost(
        steps=sum(record.steps for record in result.history) / stage.devices,
        seconds=sum(record.training_seconds for record in result.history),
        bytes=result.bytes_down + result.bytes_up,
        best_step=result.best_round,
        at_limit=float(result.best_round == result.rounds),
    )
    history = tuple(asdict(record) for record in result.history)
    return Scored(scored.devices, cost, history, result.privacy), result


def _policy(run: RunConfig, devices: int) -> dict[str, int | bool]:
    """Return what every device insists on: what is left of a cohort is as large as a sum needs.

    An interrupted run begins its sums anew, so a power cut may take what the devices remember.
    """
    if run.secure is None:
        return {"plain-updates": True}
    asked = min(devices, run.clients_per_round or round(run.client_fraction * devices))
    cohorts = planned_cohorts(asked, run.secure.combine)
    minimum = min(MINIMUM_COHORT, full_graph(max(2, asked // cohorts)).threshold)
    return {"minimum-cohort": minimum, "durable-state": False}


def federated_model(stage: Stage, result: FederationResult, run: RunConfig) -> SpeakerModel:
    """Return the federated model, apart from what devices keep to themselves."""
    return run_model.federated_model(stage.store(run).get(result.model), run)


def run_personalised(
    stage: Stage, federated: FederationResult, run: RunConfig, name: str, plan: PersonalPlan
) -> Scored:
    """Tune the federated model on every device, to its best by validation.

    Its cost is the tuning's alone; the federated arm's comes before it.
    """
    return _on_devices(
        stage, _personalise, name, federated.model, run, plan=plan, round=federated.best_round
    )


def run_pooled(stage: Stage, model_file: Path, run: RunConfig) -> Scored:
    """Score the pooled model, which has a class for every owner."""
    return _on_devices(stage, _score_pooled, "pooled", str(model_file), run)


def _on_devices(
    stage: Stage,
    work: Callable[[_Task], None],
    arm: str,
    model: str,
    run: RunConfig,
    **details: Any,
) -> Scored:
    """Do `work` on every device that has no scores yet, and read what all devices found."""
    tasks = [
        _Task(stage.folder, arm, index, model, run.to_json(), **details)
        for index in range(stage.devices)
    ]
    todo = [task for task in tasks if not task.record.exists()]
    finished = stage.executor.map(work, todo)
    for _ in progress(finished, total=len(todo), description=f"Arm {arm}", unit="device"):
        pass
    return _gather(tasks)


def _gather(tasks: Sequence[_Task]) -> Scored:
    records = [read_json(task.record) for task in tasks]
    return Scored(
        devices=tuple(load_scores(task.scores, 1)[0] for task in tasks),
        cost=ArmCost(
            steps=float(np.mean([record["steps"] for record in records])),
            seconds=sum(record["seconds"] for record in records),
            best_step=float(np.mean([record["best_step"] for record in records])),
            at_limit=float(np.mean([record["at_limit"] for record in records])),
        ),
    )


def _train_individual(task: _Task) -> None:
    dataset, run = _opened(task)
    assert task.plan is not None
    trained = train_individual(dataset, _vector(task), run, task.plan)
    model = personal_model(dataset, trained.vector, run)
    shared = flatten(model.state_dict(), shared_names(model, run))
    kept = WeightStore(task.folder / "store" / run.name).put(shared)
    _save(task, model, trained, kept)


def _personalise(task: _Task) -> None:
    dataset, run = _opened(task)
    assert task.plan is not None
    trained = personalise(dataset, _vector(task), run, task.plan, round_number=task.round)
    _save(task, personal_model(dataset, trained.vector, run), trained)


def _score_shared(task: _Task) -> None:
    dataset, run = _opened(task)
    model = restored_model(dataset, _vector(task), run, round_number=task.round)
    _save(task, model)


def _score_pooled(task: _Task) -> None:
    dataset, run = _opened(task)
    model = load_classes(Path(task.model), run)
    model.owner_label += dataset.index
    _save(task, model)


def _opened(task: _Task) -> tuple[DeviceDataset, RunConfig]:
    return _dataset(task), RunConfig.from_json(task.run)


def _dataset(task: _Task) -> DeviceDataset:
    return DeviceDataset.open(device_path(task.folder, task.index))


def _vector(task: _Task) -> FloatVector:
    run = RunConfig.from_json(task.run)
    return WeightStore(task.folder / "store" / run.name).get(task.model)


def _save(
    task: _Task, model: SpeakerModel, trained: PersonalModel | None = None, kept: str = ""
) -> None:
    """Write the device's scores and, last, the record that says that they are there."""
    scores = score_device(model, task.folder, task.index, classifier=task.classifier)
    save_scores(task.scores, [scores])
    record: dict[str, Any] = {"steps": 0, "seconds": 0.0, "best_step": 0, "at_limit": False}
    if trained is not None:
        record = {
            "steps": trained.result.steps,
            "seconds": trained.result.seconds,
            "best_step": trained.best_step,
            "at_limit": trained.best_step == trained.result.steps,
        }
    write_json(task.record, record | {"model": kept})
