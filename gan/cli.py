"""The commands `fedspk gan train`, `sample` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

GeneratorOption = Annotated[
    Path | None,
    typer.Option("--model", help="Generator file [default: the one that comes with fedspk]."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="One seed gives the same voices again.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="Feature cache [default: the user's cache folder].")
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Processes that compute features.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def register(app: typer.Typer) -> None:
    """Add this package's commands to `fedspk`."""
    group = typer.Typer(no_args_is_help=True, help="Invented voices that devices train against.")
    group.command(epilog="Example: fedspk gan train --corpus LibriSpeech --out gan")(train)
    group.command(
        epilog="Example: fedspk gan sample --count 900 --speakers 90 --out impostors.safetensors"
    )(sample)
    group.command(
        epilog="Example: fedspk gan report --corpus LibriSpeech --encoder version-1.safetensors "
        "--out report"
    )(report)
    app.add_typer(group, name="gan")


def train(
    corpus: Annotated[str, typer.Option(help="Folder of public speech, or `synthetic`.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the generator and its sheets.")],
    steps: Annotated[int, typer.Option(min=1, help="Updates of both networks.")] = 5000,
    pairs: Annotated[int, typer.Option(min=2, help="Speakers of a batch.")] = 8,
    learning_rate: Annotated[
        float, typer.Option(min=1e-7, help="Of the discriminator; the generator's is half.")
    ] = 2e-4,
    every: Annotated[
        int, typer.Option(min=1, help="Steps between checkpoints and sample sheets.")
    ] = 250,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="bfloat16 halves the time on processors that have it."),
    ] = "float32",
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1.")] = "cpu",
    seed: SeedOption = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted training.")
    ] = False,
    workers: WorkersOption = 1,
    cache: CacheOption = None,
) -> None:
    """Train an impostor generator on public speech."""
    from gan.training import GanTraining
    from gan.training_run import Recipe, train_generator

    training = GanTraining(
        steps=steps, pairs=pairs, learning_rate=learning_rate, seed=seed, precision=precision
    )
    path = train_generator(
        corpus,
        out,
        Recipe(training=training),
        every=every,
        resume=resume,
        cache_root=cache,
        workers=workers,
        device=device,
    )
    typer.echo(f"{path}: {steps} steps; look at {out / 'sheets'}, then run `fedspk gan report`.")


def sample(
    out: Annotated[Path, typer.Option("--out", help="File to write (.safetensors).")],
    model: GeneratorOption = None,
    count: Annotated[int, typer.Option(min=1, help="Patches in all.")] = 900,
    speakers: Annotated[int, typer.Option(min=1, help="Invented speakers.")] = 90,
    seed: SeedOption = 0,
) -> None:
    """Draw patches of invented speakers into a file."""
    from gan.generator_file import load_generator, packaged_generator
    from gan.samples import write_samples
    from gan.sampling import InventedVoices

    voices = InventedVoices(load_generator(model or packaged_generator()), seed)
    write_samples(out, voices, count, speakers)
    typer.echo(f"{out}: {count} patches of {min(count, speakers)} invented speakers, seed {seed}.")


def report(
    corpus: Annotated[
        str, typer.Option(help="The corpus that the generator was trained on, or another.")
    ],
    encoder: Annotated[
        Path, typer.Option(help="Speaker model that listens; best one of other speech.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page and its figures.")],
    model: GeneratorOption = None,
    experiment: Annotated[
        Path | None,
        typer.Option(help="Folder of `fedspk simulate --impostors speech,gan`: is it of use?"),
    ] = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a generator: how real, how varied, what it has learned by heart, of what use."""
    from gan.generator_file import packaged_generator
    from gan.report import run_report, verdict

    results = run_report(
        model or packaged_generator(),
        corpus,
        encoder,
        out,
        experiment=experiment,
        seed=seed,
        workers=workers,
        cache_root=cache,
    )
    if as_json:
        typer.echo(json.dumps(results, indent=2, allow_nan=False))
        return
    for sentence in verdict(results):
        typer.echo(sentence)
    typer.echo(f"Report: {out / 'report.html'}")
