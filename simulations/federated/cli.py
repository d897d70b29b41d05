"""The commands `fedspk simulate`, `pretrain`, `evaluate` and `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedspk.errors import FedspkError

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="One seed reproduces the run.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="Feature cache [default: the user's cache folder].")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Worker processes [default: one for each CPU].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def register(app: typer.Typer) -> None:
    """Add this package's commands to `fedspk`."""
    app.command(epilog="Example: fedspk simulate --devices 25 --out results/first")(simulate)
    app.command(epilog="Example: fedspk pretrain --corpus LibriSpeech --out version-1.safetensors")(
        pretrain
    )
    app.command(epilog="Example: fedspk evaluate --scores scores.txt --json")(evaluate)
    app.command(epilog="Example: fedspk compare results/first results/second")(compare)


def simulate(
    out: OutOption,
    corpus: Annotated[
        str | None,
        typer.Option(help="Folder of speech, or `synthetic` [default: the preset's]."),
    ] = None,
    devices: Annotated[int | None, typer.Option(min=2, help="Speakers that own a device.")] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="initial,individual,averaged,federated,personalised,pooled or some of them."
        ),
    ] = None,
    impostors: Annotated[
        str | None,
        typer.Option(help="speech, gan, none; several with commas, the first is the plain arm."),
    ] = None,
    gan: Annotated[
        Path | None,
        typer.Option(help="Impostor generator [default: the one that comes with fedspk]."),
    ] = None,
    public_corpus: Annotated[
        str | None,
        typer.Option(help="Folder of the public speakers [default: others of the corpus]."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Model file that every arm starts from.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder; `fedspk info` lists them.")] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="Federated rounds.")] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="Local epochs a round and device.")
    ] = None,
    head: Annotated[
        Literal["local", "shared"] | None,
        typer.Option(
            help="Learn the owners' classes, on the device or shared [default: codewords]."
        ),
    ] = None,
    secure: Annotated[
        bool | None,
        typer.Option(
            "--secure/--no-secure",
            help="Sum the updates so that no single one is seen [default: secure].",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=0, help="Folds of cross-validation; 0: when utterances are few."),
    ] = None,
    seed: SeedOption = None,
    preset: Annotated[
        Literal["default", "quick", "paper"],
        typer.Option(help="quick: minutes on synthetic speech; paper: Woubie & Bäckström's."),
    ] = "default",
    config: Annotated[
        Path | None, typer.Option(help="TOML file; flags override it, it overrides the preset.")
    ] = None,
    backend: Annotated[
        Literal["ray", "inprocess"],
        typer.Option(help="inprocess: processes of this machine; ray: Ray, also a cluster."),
    ] = "inprocess",
    ray_address: Annotated[str | None, typer.Option(help="Address of a Ray cluster.")] = None,
    workers: WorkersOption = None,
    cache: CacheOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Give each speaker a device, train alone and together, and report the error rates."""
    from simulations.executors import open_executor
    from simulations.federated.config import load_config
    from simulations.federated.experiment import run_experiment
    from simulations.federated.report import summary_table, verdict

    flags: dict[str, Any] = {
        "corpus": corpus,
        "devices": devices,
        "arms": _listed(arms),
        "impostors": _listed(impostors),
        "generator": gan and gan.absolute(),
        "public_corpus": public_corpus,
        "init": init,
        "run.encoder": encoder,
        "federated.rounds": rounds,
        "federated.secure": secure,
        "folds": folds,
        "seed": seed,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if epochs is not None:
        given |= {"federated.local_epochs": epochs, "federated.local_steps": 0}
    if head is not None:  # fixed codewords leave no head that could be local or shared
        given |= {"federated.head": head, "federated.codeword_seed": None}
    settings = load_config(preset, config, given)
    with open_executor(backend, workers=workers, address=ray_address) as executor:
        results = run_experiment(settings, out, executor, cache_root=cache, resume=resume)
    if as_json:
        typer.echo(json.dumps(results, indent=2, allow_nan=False))
        return
    typer.echo(summary_table(results))
    for sentence in verdict(results):
        typer.echo(sentence)
    typer.echo(f"Report: {out / 'report.html'}")


def pretrain(
    corpus: Annotated[str, typer.Option(help="Folder of public speech, or `synthetic`.")],
    out: Annotated[Path, typer.Option("--out", help="Model file to write (.safetensors).")],
    encoder: Annotated[str | None, typer.Option(help="Encoder to train.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    seed: SeedOption = None,
    config: Annotated[Path | None, typer.Option(help="TOML file, as for simulate.")] = None,
    workers: WorkersOption = None,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train version 1 on public speech: the model that a fleet starts from."""
    from simulations.federated.config import load_config
    from simulations.federated.pretraining import pretrain_model

    flags = {"corpus": corpus, "run.encoder": encoder, "pretrain.steps": steps, "seed": seed}
    settings = load_config("default", config, {k: v for k, v in flags.items() if v is not None})
    made = pretrain_model(settings, out, cache_root=cache, workers=workers)
    if as_json:
        typer.echo(json.dumps(made, indent=2, allow_nan=False))
        return
    loss = made["validation_loss"]
    typer.echo(
        f"{out}: {made['speakers']} speakers, {made['steps']} steps, validation loss "
        f"{'-' if loss is None else format(loss, '.3f')}, model {made['hash'][:16]}"
    )


def evaluate(
    scores: Annotated[
        Path | None, typer.Option(help="Score file: `label score` or a scored trial list.")
    ] = None,
    trials: Annotated[
        Path | None, typer.Option(help="Trial list: `label enrolment test` a line.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model file that scores the trials.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the trials' audio [default: the list's].")
    ] = None,
    p_target: Annotated[
        float, typer.Option(min=1e-6, max=0.999999, help="Prior of the detection cost.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap interval.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the DET plot, as PNG and SVG.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="File for what `fedspk server publish --manifest` takes; with --trials."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute EER, minDCF and the DET curve from anybody's scores or trials."""
    from fedspk.engine import SpeechEngine
    from fedspk.evaluation import error_rates, score_trials
    from fedspk.files import write_json
    from fedspk.model_card import card_of_trials
    from fedspk.trials import read_scores, read_trials
    from simulations.federated.report import write_det

    if (scores is None) == (trials is None) or (trials is None) != (model is None):
        raise FedspkError("Give either --scores FILE, or --trials FILE with --model FILE.")
    if manifest is not None and trials is None:
        raise FedspkError("--manifest needs --trials FILE and --model FILE: scores name no model.")
    if scores is not None:
        target, nontarget = read_scores(scores)
    else:
        assert trials is not None and model is not None
        engine, listed, audio = SpeechEngine.load(model), read_trials(trials), root or trials.parent
        target, nontarget = score_trials(listed, engine, audio)
        if manifest is not None:
            card = card_of_trials(listed, audio, target, nontarget, seed=seed, p_target=p_target)
            write_json(manifest, {"content_hash": engine.model_hash, **card})
    found = error_rates(target, nontarget, p_target, seed)
    if out is not None:
        write_det(out, target, nontarget)
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    low, high = found["eer_interval"]
    typer.echo(
        f"EER {found['eer']:.2f} % (95 % interval {low:.2f} to {high:.2f}) "
        f"at threshold {found['threshold']:.4f}\n"
        f"minDCF {found['min_dcf']:.4f} (target prior {p_target:g})\n"
        f"{found['targets']} target and {found['nontargets']} non-target trials"
    )


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of one run.")],
    b: Annotated[Path, typer.Argument(help="Folder of another run over the same devices.")],
    as_json: JsonOption = False,
) -> None:
    """Test whether two runs' devices differ: every arm of one run against the other's."""
    from simulations.federated.comparison import compare_runs, comparison_table

    entries = compare_runs(a, b)
    typer.echo(json.dumps(entries, indent=2) if as_json else comparison_table(entries))


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
