"""The command `fedspk device train`: a user's recordings in a federation, as masked updates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clients.device_options import HomeOption, PassphraseOption, open_vault


def add_commands(device: typer.Typer) -> None:
    """Add the command to the group `device`."""
    device.command(
        epilog="Example: fedspk device train --user anna --superlink aggregator.example.org:443 "
        "--fleet register.json --node-key node.key"
    )(train)


def train(
    user: Annotated[str, typer.Option("--user", help="Whose enrolment recordings train.")],
    superlink: Annotated[str, typer.Option(help="The aggregator's SuperLink, HOST:PORT.")],
    fleet: Annotated[
        Path, typer.Option(help="The fleet's keys: `fedspk server devices --register`.")
    ],
    impostors: Annotated[
        Path | None,
        typer.Option(
            help="Others' speech, a folder each; the same on all devices of the fleet [default: "
            "voices that the main server's generator invents]."
        ),
    ] = None,
    certificates: Annotated[
        Path | None, typer.Option(help="Authorities to believe (PEM) [default: the system's].")
    ] = None,
    node_key: Annotated[
        Path | None, typer.Option(help="Key that the SuperLink knows this device by.")
    ] = None,
    trusted_entities: Annotated[
        Path | None, typer.Option(help="Keys whose signed code is run [default: any code].")
    ] = None,
    index: Annotated[
        int, typer.Option(min=0, help="This device's number, if a run has a class for each.")
    ] = 0,
    minimum_cohort: Annotated[
        int, typer.Option(min=2, help="Fewest devices of a sum that this one takes part in.")
    ] = 5,
    minimum_noise: Annotated[
        float, typer.Option(min=0.0, help="Least noise in a sum, as a multiple of its sensitivity.")
    ] = 0.0,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port on loopback for Flower's own processes.")
    ] = 9094,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Take part in a federation until stopped; only masked updates leave, only memory is used."""
    import signal

    from clients.supernode import Federation, run_supernode
    from fedspk.signals import stopped_by

    federation = Federation(
        superlink,
        fleet,
        certificates,
        node_key,
        trusted_entities,
        minimum_cohort,
        minimum_noise,
        port,
    )
    with stopped_by(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as stop:
        run_supernode(open_vault(home, passphrase_file), user, impostors, federation, stop, index)
