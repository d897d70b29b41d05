"""The commands of a device: `fedspk device`, and `fedspk identity` for the sums of its fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clients import device_cli
from fedspk.errors import FedspkError

_ENROLLED = "DEVICE=KEY as `fedspk identity new` prints it; several are welcome."


def register(app: typer.Typer) -> None:
    """Add this package's commands to `fedspk`."""
    identity = typer.Typer(
        no_args_is_help=True, help="Make device identities and the register that lists them."
    )
    identity.command(
        epilog="Example: fedspk identity new --device kitchen --out kitchen.identity.json"
    )(new)
    identity.command(
        "register",
        epilog="Example: fedspk identity register --out register.json kitchen=8c1f...",
    )(add_to_register)
    app.add_typer(identity, name="identity")
    device_cli.register(app)


def new(
    device: Annotated[str, typer.Option(help="The device's name, unique in its fleet.")],
    out: Annotated[Path, typer.Option("--out", help="File for the private key; stays there.")],
) -> None:
    """Make a device's identity, on the device, and print what the register needs to know of it."""
    from clients.enrolment import create_identity

    identity = create_identity(device, out)
    typer.echo(f"{device}={identity.public.hex()}")


def add_to_register(
    public: Annotated[list[str], typer.Argument(metavar="DEVICE=KEY...", help=_ENROLLED)],
    out: Annotated[Path, typer.Option("--out", help="Register; made when it is not there.")],
) -> None:
    """Add devices to the register that every device and the aggregator get a copy of."""
    from clients.enrolment import enrol

    keys = dict(_parsed(each) for each in public)
    if len(keys) < len(public):
        raise FedspkError("A device is named twice; give each DEVICE=KEY once.")
    enrol(out, keys)
    typer.echo(f"{out}: {', '.join(keys)} registered.")


def _parsed(text: str) -> tuple[str, bytes]:
    device, _, key = text.partition("=")
    try:
        return device, bytes.fromhex(key)
    except ValueError as error:
        raise FedspkError(f"{text!r} is not DEVICE=KEY with the key in hex.") from error
