"""The experiment from a corpus to the report: speakers, features, the start, the arms, the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aggregator.facts import training_facts
from fedspk.cache import FeatureCache
from fedspk.cli import installed_versions
from fedspk.corpora import Corpus, open_corpus
from fedspk.engine import SpeechEngine
from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json
from fedspk.model import SpeakerModel
from fedspk.model_card import model_card
from fedspk.rounds import ImpostorKind
from gan.generator_file import check_front_end, load_generator
from gan.invented import file_hash
from simulations.executors import Executor
from simulations.federated.arms import (
    Scored,
    Stage,
    federated_model,
    run_averaged,
    run_federated,
    run_individual,
    run_initial,
    run_personalised,
    run_pooled,
)
from simulations.federated.cast import (
    Cast,
    assign,
    choose_public,
    choose_speakers,
    count_folds,
    joined,
)
from simulations.federated.config import ExperimentConfig, arm_name
from simulations.federated.plan import Plan, make_plan, save_plan, trials_fingerprint
from simulations.federated.report import write_report
from simulations.federated.results import (
    ArmResult,
    Json,
    compare_arms,
    device_rows,
    mean_cost,
    summarise,
)
from simulations.federated.secure import secure_summary
from simulations.federated.start import (
    check_init,
    check_unheard,
    pooled_model,
    save_made,
    starting_model,
    with_invented_classes,
)
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
    check_init(config)
    if "gan" in config.impostors:
        check_front_end(config.generator, load_generator(config.generator), config.front_end)
    _check_out(out, resume)
    cache = FeatureCache(cache_root)
    corpus = choose_speakers(open_corpus(config.corpus), config, cache, executor.workers)
    folds = config.folds or count_folds(corpus, config.devices, config.seed)
    config = config.model_copy(update={"folds": folds})
    public = choose_public(config, cache, executor.workers)
    casts = [assign(corpus, config, fold, public) for fold in range(folds)]
    corpus = joined(corpus, public)
    check_unheard(config, (utterance for cast in casts for utterance in cast.tested))
    _claim(out, config, corpus)
    parts = [
        _run_fold(config, corpus, cast, cache, out.absolute() / f"fold-{fold}", executor)
        for fold, cast in enumerate(casts)
    ]
    arms = {name: _merged(name, [part[name] for part in parts], config.seed) for name in parts[0]}
    results = _results(config, corpus, casts, arms) | {"models": _models(out)}
    write_json(out / _RESULTS, results)
    scores = {
        name: pooled_scores([device for part in parts for device in part[name].devices])
        for name in arms
    }
    write_report(out, results, scores)
    return results


def _check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that holds something else, before anything long begins."""
    if out.exists() and not out.is_dir():
        raise FedspkError(f"{out}: is a file; give --out a folder.")
    if (out / _CONFIG).exists():
        if not resume:
            raise FedspkError(
                f"{out}: already holds a run; add --resume to continue it or give another --out."
            )
    elif out.exists() and any(out.iterdir()):
        raise FedspkError(f"{out}: is not empty and holds no run; give another --out.")


def _claim(out: Path, config: ExperimentConfig, corpus: Corpus) -> None:
    """Write down what runs in `out`, or make sure that it is this very run."""
    wanted = {"config": config.model_dump(mode="json"), "fingerprint": corpus.fingerprint}
    path = out / _CONFIG
    if not path.exists():
        write_json(path, wanted)
        return
    for name, value in _differences(read_json(path), wanted):
        raise FedspkError(
            f"{out}: was started with another {name} (now {value}); give the same or another --out."
        )


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
    cast: Cast,
    cache: FeatureCache,
    folder: Path,
    executor: Executor,
) -> dict[str, Scored]:
    """Run all arms on one division into training and test; return them in the report's order."""
    plan = make_plan(corpus, cast, config, cache, executor.workers)
    save_plan(plan, folder, config.generator if "gan" in config.impostors else None)
    stage = Stage(folder, config.devices, executor)
    start, cost = starting_model(config, plan, folder / "models")
    scored: dict[str, Scored] = {}
    if "initial" in config.arms:
        run = config.arm("initial", config.impostors[0], plan.public.classes)
        scored["initial"] = replace(run_initial(stage, start, run), cost=cost)
        _write_manifest(stage, "initial", scored["initial"], corpus, config)
    for kind in config.impostors:
        scored |= _device_arms(config, kind, plan, stage, start, corpus)
    if "pooled" in config.arms:
        run = config.arm("pooled", config.impostors[0], plan.public.classes)
        path, cost = pooled_model(config, plan, start, folder / "models")
        scored["pooled"] = replace(run_pooled(stage, path, run), cost=cost)
    return scored


def _device_arms(
    config: ExperimentConfig,
    kind: ImpostorKind,
    plan: Plan,
    stage: Stage,
    start: SpeakerModel,
    corpus: Corpus,
) -> dict[str, Scored]:
    """Run the arms in which devices train, with one kind of impostors."""
    scored: dict[str, Scored] = {}
    if kind == "gan":
        start = with_invented_classes(start, config)
    if {"individual", "averaged"} & set(config.arms):
        run = config.arm("individual", kind, plan.public.classes)
        alone = run_individual(stage, start, run, config.individual)
        if "individual" in config.arms:
            scored[run.name] = alone
        if "averaged" in config.arms:
            name = arm_name("averaged", kind, config.impostors[0])
            scored[name] = run_averaged(stage, run, name)
    if not {"federated", "personalised"} & set(config.arms):
        return scored
    run = config.arm("federated", kind, plan.public.classes)
    found, federated = run_federated(stage, start, run)
    path = stage.folder / "models" / f"{run.name}.safetensors"
    if not path.exists():
        parent = SpeechEngine.load(stage.folder / "models" / "initial.safetensors").model_hash
        save_made(path, federated_model(stage, federated, run), config, run, found.cost, parent)
    facts = training_facts(run, federated.history[federated.best_round], federated.budget)
    _write_manifest(stage, run.name, found, corpus, config, facts)
    if "federated" in config.arms:
        scored[run.name] = found
    if "personalised" in config.arms:
        name = arm_name("personalised", kind, config.impostors[0])
        run = config.arm("personalised", kind, plan.public.classes)
        scored[name] = run_personalised(stage, federated, run, name, config.personalised)
    return scored


def _write_manifest(
    stage: Stage,
    name: str,
    scored: Scored,
    corpus: Corpus,
    config: ExperimentConfig,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write what the fold knows of a model beside it, for the manifest of its publication."""
    trials = pooled_scores(scored.devices)
    card = model_card(
        trials.target,
        trials.nontarget,
        corpus=trials_fingerprint(stage.folder, corpus.fingerprint, config),
        devices=stage.devices,
        seed=config.seed,
    )
    path = stage.folder / "models" / f"{name}.manifest.json"
    model_hash = SpeechEngine.load(path.with_name(f"{name}.safetensors")).model_hash
    write_json(path, {"content_hash": model_hash, **(facts or {}), **card})


def _merged(name: str, folds: list[Scored], seed: int) -> ArmResult:
    """Bring one arm's folds together, device by device."""
    devices = zip(*(fold.devices for fold in folds), strict=True)
    return ArmResult(
        name=name,
        errors=tuple(device_errors(scores, seed) for scores in devices),
        cost=mean_cost([fold.cost for fold in folds]),
        history=folds[0].history,
        privacy=folds[0].privacy,
    )


def _models(out: Path) -> dict[str, str]:
    """Return the content hashes of the first fold's models, which are versions for other runs."""
    files = sorted((out / "fold-0" / "models").glob("*.safetensors"))
    return {path.stem: SpeechEngine.load(path).model_hash for path in files}


def _results(
    config: ExperimentConfig,
    corpus: Corpus,
    casts: Sequence[Cast],
    arms: Mapping[str, ArmResult],
) -> Json:
    rows = device_rows([owner.speaker for owner in casts[0].owners], list(arms.values()))
    return {
        "summary": {name: summarise(arm, config.seed) for name, arm in arms.items()},
        "devices": rows,
        "tests": compare_arms(rows),
        "history": {name: list(arm.history) for name, arm in arms.items() if arm.history},
        "secure": {
            name: secure_summary(arm.history, arm.privacy)
            for name, arm in arms.items()
            if arm.history
        },
        "corpus": _described(corpus, casts),
        "config": config.model_dump(mode="json"),
        "generator": file_hash(config.generator) if "gan" in config.impostors else None,
        "seed": config.seed,
        "versions": installed_versions(),
    }


def _described(corpus: Corpus, casts: Sequence[Cast]) -> Json:
    cast = casts[0]
    speakers = [owner.speaker for owner in cast.owners]
    used = corpus.only([*speakers, *cast.public_train, *cast.outsiders])
    owners = [owner for each in casts for owner in each.owners]
    new = sum(owner.is_tested_on_new_sessions for owner in owners)
    return {
        "name": corpus.name,
        "fingerprint": corpus.fingerprint,
        "speakers": len(used.speakers),
        "utterances": len(used.utterances),
        "public_speakers": len(cast.public_train),
        "outsiders": len(cast.outsiders),
        "owners_tested_on_new_sessions": new / len(owners),
        "skipped": corpus.skip_reasons,
    }
