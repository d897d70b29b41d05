"""The command `fedspk versim`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_EXAMPLE = "Example: fedspk versim --users 100 --interval 1 --sweep workers=5,10,20 --out results"


def register(app: typer.Typer) -> None:
    """Add this package's command to `fedspk`."""
    app.command(epilog=_EXAMPLE)(versim)


def versim(
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    config: Annotated[
        Path | None,
        typer.Option(help="TOML or YAML file, SpeakerVerSim's too; flags override it."),
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(help="With commas (default: SSO,SSO-sync,SSO-hash,SSO-mul,SD).")
    ] = None,
    model: Annotated[
        Literal["default", "compat"] | None,
        typer.Option(help="compat: SpeakerVerSim's own arithmetic, quirks included."),
    ] = None,
    runs: Annotated[int | None, typer.Option(help="Runs of each strategy (default: 100).")] = None,
    seed: Annotated[int | None, typer.Option(help="One seed reproduces the runs.")] = None,
    workers: Annotated[int | None, typer.Option(help="Cloud workers (default: 10).")] = None,
    users: Annotated[int | None, typer.Option(help="Enrolled users (default: 1).")] = None,
    interval: Annotated[
        float | None, typer.Option(help="Mean seconds between two requests (default: 10).")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Length of a run (default: 3).")] = None,
    sync_interval: Annotated[
        float | None, typer.Option(help="Seconds between polls of SSO-sync (default: 600).")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2,...", help="Simulate each value of a field as well."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes (default: as many as pay).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Simulate strategies of rolling out a new model version, and recommend one."""
    from fedspk.errors import FedspkError
    from simulations.versioning.experiment import run_experiment
    from simulations.versioning.report import summary_table

    if sweep and len(sweep) > 1:
        raise FedspkError(f"--sweep is given {len(sweep)} times; give it once, for one field.")
    flags: dict[str, Any] = {
        "strategies": None if strategies is None else _listed(strategies),
        "model": model,
        "runs": runs,
        "seed": seed,
        "workers": workers,
        "users": users,
        "interval": interval,
        "hours": hours,
        "sync_interval": sync_interval,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    results = run_experiment(config, given, sweep[0] if sweep else None, out, jobs=jobs)
    if as_json:
        typer.echo(json.dumps(results, indent=2, allow_nan=False))
        return
    typer.echo(summary_table(results["strategies"]))
    typer.echo(f"\n{results['recommendation']['text']}\n")
    typer.echo(f"Report: {out / 'report.html'}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
