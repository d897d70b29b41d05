"""The commands of a running device and its main server: run, register, change-passphrase, unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clients.device_options import HomeOption, PassphraseOption, open_vault, report
from fedspk.errors import FedspkError

_LONGEST_POLL_S = 30 * 86_400.0

TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="File of the token that `fedspk server register-device` made, yours alone [default: "
        "systemd's credential fedspk-token, else ask].",
    ),
]


def add_commands(device: typer.Typer) -> None:
    """Add these commands to the group `device`."""
    device.command(epilog="Example: fedspk device run --home /var/lib/fedspk")(run)
    device.command(epilog="Example: fedspk device register --token-file token")(register)
    device.command(
        "change-passphrase",
        epilog="Example: fedspk device change-passphrase --new-passphrase-file new",
    )(change_passphrase)
    device.command(epilog="Example: fedspk device unit > fedspk-device.service")(unit)


def run(
    home: HomeOption = None,
    poll: Annotated[
        float,
        typer.Option(help="Seconds between two looks for a new version, +- 20 %; at least 1."),
    ] = 3600.0,
    socket: Annotated[
        Path | None,
        typer.Option(help="Socket that answers this machine's programs [default: in the folder]."),
    ] = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Stay in memory: answer programs over a socket, and follow the main server's versions."""
    import logging
    import random
    import signal

    from clients.service import SOCKET, run_service
    from fedspk.signals import stopped_by

    logging.basicConfig(format="fedspk: %(levelname)s: %(message)s", level=logging.INFO)
    if not 1.0 <= poll <= _LONGEST_POLL_S:  # also refuses what is no number
        raise FedspkError(f"--poll must be from 1 to {_LONGEST_POLL_S:.0f} seconds (30 days).")
    with stopped_by(signal.SIGTERM, signal.SIGINT) as stop:
        vault = open_vault(home, passphrase_file)
        run_service(vault, socket or vault.home / SOCKET, poll, stop, random.SystemRandom())


def register(
    token_file: TokenOption = None,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Give the main server this device's public key, so that it knows what the device runs."""
    from clients.followed import read_server
    from clients.registration import TOKEN
    from clients.registration import register as register_device

    vault = open_vault(home, passphrase_file)
    server = read_server(vault)
    if server is None:
        raise FedspkError("this device follows no main server; see `fedspk device init --server`.")
    register_device(vault, server.address, TOKEN.read(token_file).decode(), server.ca)
    typer.echo(f"device {vault.device[:8]} is registered with {server.address}.")
    report(vault)


def change_passphrase(
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
    new_passphrase_file: Annotated[
        Path | None,
        typer.Option(help="File of the new passphrase, yours alone [default: ask]."),
    ] = None,
) -> None:
    """Guard the vault by another passphrase; recordings and profiles stay as they are."""
    from clients.vault_key import new_passphrase_source

    vault = open_vault(home, passphrase_file)
    vault.change_passphrase(new_passphrase_source(new_passphrase_file))
    typer.echo(f"{vault.home}: the new passphrase opens the vault, the old one does not any more.")


def unit() -> None:
    """Print a systemd unit for this installation."""
    from clients.systemd import unit as unit_text

    typer.echo(unit_text(), nl=False)
