"""The experiment from a corpus to the report: speakers, features, the start, the arms, the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.federation import FederationResult
from clients.impostors import require_impostors
from clients.local import PersonalPlan
from fedspk.cache import FeatureCache
from fedspk.cli import installed_versions
from fedspk.corpora import Corpus, open_corpus
from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json
from fedspk.model import SpeakerModel
from fedspk.rounds import ImpostorKind
from simulations.executors import Executor
from simulations.federated.arms import (
    Scored,
    Stage,
    run_averaged,
    run_federated,
    run_individual,
    run_initial,
    run_personalised,
    run_pooled,
)
from simulations.federated.cast import Cast, assign, choose_speakers, count_folds
from simulations.federated.config import ExperimentConfig, PersonalTraining, arm_name
from simulations.federated.plan import Plan, make_plan, save_plan
from simulations.federated.report import write_report
from simulations.federated.results import (
    ArmCost,
    ArmResult,
    Json,
    compare_arms,
    device_rows,
    summarise,
)
from simulations.federated.start import pooled_model, starting_model
from simulations.federated.trials import device_errors, pooled_scores

_CONFIG, _RESULTS = "config.json", "results.json"


def run_experiment(
    config: ExperimentConfig,
    out: Path,
    executor: Executor,
    *,
    cache_root: Path | None = None,
    resume: bool = False,
) -> Json:
    """Run every arm, write `results.json`, figures and `report.html` under `out`.

    Args:
        config: what to run.
        out: a new or empty folder, or with `resume` that of an interrupted run.
        executor: where the devices' work runs.
        cache_root: folder of the feature cache; None takes the user's.
        resume: continue; whatever was finished is not done again and gives the same numbers.

    Raises:
        FedspkError: the corpus or the configuration will not do, or `out` holds another run.
    """
    for kind in config.impostors:
        require_impostors(kind)
    corpus = _chosen(config, cache := FeatureCache(cache_root), executor.workers)
    _claim(out, config, corpus, resume)
    config = config.model_copy(
        update={"folds": config.folds or count_folds(corpus, config.devices, config.seed)}
    )
    folds = [_run_fold(config, corpus, cache, out, executor, f) for f in range(config.folds)]
    arms = {
        name: _merged(name, [fold[name] for fold, _ in folds], config.seed) for name in folds[0][0]
    }
    results = _results(config, corpus, folds[0][1], arms)
    write_json(out / _RESULTS, results)
    scores = {
        name: pooled_scores([device for fold, _ in folds for device in fold[name].devices])
        for name in arms
    }
    write_report(out, results, scores)
    return results


def _chosen(config: ExperimentConfig, cache: FeatureCache, workers: int) -> Corpus:
    corpus = open_corpus(config.corpus)
    return choose_speakers(
        corpus, config.devices, config.public_speakers, config.seed, cache, workers
    )


def _claim(out: Path, config: ExperimentConfig, corpus: Corpus, resume: bool) -> None:
    """Make sure that `out` is free, or holds this very run to be continued."""
    wanted = {
        "config": config.model_dump(mode="json"),
        "fingerprint": corpus.fingerprint,
    }
    path = out / _CONFIG
    if out.exists() and not out.is_dir():
        raise FedspkError(f"{out}: is a file; give --out a folder.")
    if path.exists():
        if not resume:
            raise FedspkError(
                f"{out}: already holds a run; add --resume to continue it or give another --out."
            )
        for name, value in _differences(read_json(path), wanted):
            raise FedspkError(
                f"{out}: was started with another {name} (now {value}); give the same or "
                "another --out."
            )
    elif out.exists() and any(out.iterdir()):
        raise FedspkError(f"{out}: is not empty and holds no run; give another --out.")
    else:
        write_json(path, wanted)


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            yield from _differences(old, value, f"{prefix}{name}.")
        elif old != value:
            yield f"{prefix}{name}".removeprefix("config."), value


def _run_fold(
    config: ExperimentConfig,
    corpus: Corpus,
    cache: FeatureCache,
    out: Path,
    executor: Executor,
    fold: int,
) -> tuple[dict[str, Scored], Cast]:
    """Run all arms on one division into training and test; return them in the report's order."""
    cast = assign(corpus, config.devices, config.public_speakers, config.seed, fold, config.folds)
    folder = out.absolute() / f"fold-{fold}"
    plan = make_plan(corpus, cast, config, cache, executor.workers)
    save_plan(plan, folder)
    stage = Stage(folder, config.devices, executor)
    start, cost = starting_model(config, plan, folder / "models")
    scored: dict[str, Scored] = {}
    if "initial" in config.arms:
        run = config.arm("initial", config.impostors[0], plan.public.classes)
        scored["initial"] = _with_cost(run_initial(stage, start, run), cost)
    for kind in config.impostors:
        scored |= _device_arms(config, kind, plan, stage, start)
    if "pooled" in config.arms:
        run = config.arm("pooled", config.impostors[0], plan.public.classes)
        path, cost = pooled_model(config, plan, start, folder / "models")
        scored["pooled"] = _with_cost(run_pooled(stage, path, run), cost)
    return scored, cast


def _device_arms(
    config: ExperimentConfig, kind: ImpostorKind, plan: Plan, stage: Stage, start: SpeakerModel
) -> dict[str, Scored]:
    """Run the arms in which devices train, with one kind of impostors."""
    scored: dict[str, Scored] = {}
    if {"individual", "averaged"} & set(config.arms):
        run = config.arm("individual", kind, plan.public.classes)
        alone = run_individual(stage, start, run, _personal(config.individual))
        if "individual" in config.arms:
            scored[run.name] = alone
        if "averaged" in config.arms:
            name = arm_name("averaged", kind, config.impostors[0])
            scored[name] = run_averaged(stage, run, name)
    if not {"federated", "personalised"} & set(config.arms):
        return scored
    run = config.arm("federated", kind, plan.public.classes)
    federated: FederationResult
    found, federated = run_federated(stage, start, run)
    if "federated" in config.arms:
        scored[run.name] = found
    if "personalised" in config.arms:
        name = arm_name("personalised", kind, config.impostors[0])
        scored[name] = run_personalised(stage, federated, run, name, _personal(config.personalised))
    return scored


def _personal(training: PersonalTraining) -> PersonalPlan:
    return PersonalPlan(**training.model_dump())


def _with_cost(scored: Scored, cost: ArmCost) -> Scored:
    return Scored(scored.devices, cost, scored.history)


def _merged(name: str, folds: list[Scored], seed: int) -> ArmResult:
    """Bring one arm's folds together, device by device."""
    devices = zip(*(fold.devices for fold in folds), strict=True)
    return ArmResult(
        name=name,
        errors=tuple(device_errors(scores, seed) for scores in devices),
        cost=ArmCost(
            steps=float(np.mean([fold.cost.steps for fold in folds])),
            seconds=sum(fold.cost.seconds for fold in folds),
            bytes=sum(fold.cost.bytes for fold in folds),
        ),
        history=folds[0].history,
    )


def _results(
    config: ExperimentConfig, corpus: Corpus, cast: Cast, arms: Mapping[str, ArmResult]
) -> Json:
    rows = device_rows([owner.speaker for owner in cast.owners], list(arms.values()))
    return {
        "summary": {name: summarise(arm, config.seed) for name, arm in arms.items()},
        "devices": rows,
        "tests": compare_arms(rows),
        "history": {name: list(arm.history) for name, arm in arms.items() if arm.history},
        "corpus": _described(corpus, cast),
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": installed_versions(),
    }


def _described(corpus: Corpus, cast: Cast) -> Json:
    speakers = [owner.speaker for owner in cast.owners]
    used = corpus.only([*speakers, *cast.public_train, *cast.outsiders])
    return {
        "name": corpus.name,
        "fingerprint": corpus.fingerprint,
        "speakers": len(used.speakers),
        "utterances": len(used.utterances),
        "public_speakers": len(cast.public_train),
        "outsiders": len(cast.outsiders),
        "has_sessions": corpus.has_sessions,
        "session_note": (
            "test sessions are disjoint from training sessions."
            if corpus.has_sessions
            else "the corpus names no sessions, so the split is by utterance."
        ),
        "skipped": corpus.skip_reasons,
    }


def log(sentence: str) -> None:
    """Tell a person at the terminal what happens now."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{sentence}\n")
