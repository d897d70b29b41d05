"""`fedspk`: one command whose groups are brought by the role packages through entry points."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import click
import typer

from fedspk import __version__
from fedspk.errors import FedspkError
from fedspk.signals import INTERRUPTED, INTERRUPTED_LINE

USAGE_ERROR = 2

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def build_app() -> typer.Typer:
    """Return the command with everything that the installed packages register under it."""
    app = typer.Typer(
        name="fedspk",
        help="Federated learning of speaker models: voices stay on the device.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(epilog="Example: fedspk info --json")(info)
    for entry in sorted(metadata.entry_points(group="fedspk.commands"), key=lambda e: e.name):
        entry.load()(app)
    return app


def info(as_json: JsonFlag = False) -> None:
    """Show versions, which torchaudio was found, and the encoders."""
    from fedspk.encoders import list_encoders

    versions, encoders = installed_versions(), list_encoders()
    if as_json:
        typer.echo(json.dumps({"versions": versions, "encoders": encoders}, indent=2))
        return
    for name, text in versions.items():
        typer.echo(f"{name:<12} {text}")
    typer.echo("\nEncoders:")
    for name, text in encoders.items():
        typer.echo(f"{name:<12} {text}")


def installed_versions() -> dict[str, str]:
    """Return the versions that every result file records."""
    from fedspk.torchaudio_compat import torchaudio_status

    names = ("torch", "flwr", "ray", "numpy", "librosa", "scipy", "safetensors")
    found = {"fedspk": __version__, "python": platform.python_version()}
    found |= {name: metadata.version(name) for name in names}
    return found | {"torchaudio": torchaudio_status()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends with one sentence and exit code 2, Ctrl-C with 130."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        command = typer.main.get_command(build_app())
        result = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="fedspk",
            standalone_mode=False,
        )
        if result == INTERRUPTED:  # typer's answer to Ctrl-C, which says nothing
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except (click.ClickException, FedspkError) as error:
        typer.echo(_explained(error), err=True)
        return USAGE_ERROR
    except (KeyboardInterrupt, click.exceptions.Abort):
        typer.echo(INTERRUPTED_LINE, err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        typer.echo(f"fedspk: {error.filename or 'a file'}: {error.strerror}.", err=True)
        return USAGE_ERROR


def _explained(error: click.ClickException | FedspkError) -> str:
    if isinstance(error, FedspkError):
        return f"fedspk: {error}"
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and error.ctx:
        return error.ctx.get_help()
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "fedspk"
        return f"fedspk: {error.format_message()} See `{command} --help`."
    return f"fedspk: {error.format_message()}"
