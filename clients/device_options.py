"""What the commands `fedspk device` have in common: the device's folder and vault, its reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from clients.updater import Outcome
    from clients.vault import Vault

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The device's folder [default: in your data folder].")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="File of the vault's passphrase, yours alone [default: systemd's credential "
        "fedspk-vault, else ask].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def home_folder(home: Path | None) -> Path:
    """Return the device's folder: the one given, else that in the user's data folder."""
    if home is not None:
        return home
    import platformdirs

    return platformdirs.user_data_path("fedspk", appauthor=False) / "device"


def open_vault(home: Path | None, passphrase_file: Path | None) -> Vault:
    """Open the vault of the device; from now on this process leaves no core dump."""
    from clients.secret_input import leave_no_core_dump
    from clients.vault import Vault
    from clients.vault_key import passphrase_source

    leave_no_core_dump()
    return Vault.open(home_folder(home), passphrase_source(passphrase_file))


def print_json(**fields: object) -> None:
    """Print fields for scripts."""
    typer.echo(json.dumps(fields, indent=2))


def report(vault: Vault, outcome: Outcome | None = None) -> None:
    """Tell the main server what the device runs, if it knows the device; a failure is a warning."""
    from clients.followed import read_check
    from clients.registration import report_once
    from clients.updater import Outcome
    from clients.versions import read_versions

    try:
        if outcome is None:
            check = read_check(vault)
            trouble = check.trouble if check else None
            outcome = Outcome(read_versions(vault).current, None, trouble=trouble)
        report_once(vault, outcome.report())
    except FedspkError as error:
        typer.echo(f"fedspk: the report to the main server failed: {error}", err=True)
