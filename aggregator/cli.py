"""The command `fedspk bundle`: signed app bundles for devices that run no others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this package's commands to `fedspk`."""
    bundle = typer.Typer(
        no_args_is_help=True, help="Sign app bundles and hand them to this machine's SuperLink."
    )
    bundle.command(
        epilog="Example: fedspk bundle sign fedspk.fedspk.0-1-0.1a2b3c4d.fab --key release "
        "--signer fpk_release"
    )(sign)
    bundle.command(epilog="Example: fedspk bundle serve /srv/fedspk/bundles --port 9450")(serve)
    app.add_typer(bundle, name="bundle")


def sign(
    bundle: Annotated[Path, typer.Argument(help="What `flwr build` made.")],
    key: Annotated[Path, typer.Option(help="Ed25519 key of `ssh-keygen -t ed25519`.")],
    signer: Annotated[str, typer.Option(help="The key's name in the devices' trusted entities.")],
) -> None:
    """Sign a bundle; the signature goes into a file beside it."""
    from aggregator.bundles import sign_bundle

    typer.echo(sign_bundle(bundle, key, signer))


def serve(
    folder: Annotated[Path, typer.Argument(help="Bundles and their signatures.")],
    port: Annotated[int, typer.Option(help="Port on this machine's loopback.")] = 9450,
) -> None:
    """Serve bundles to the SuperLink whose FLWR_SUPERGRID_API_URL is the address printed."""
    from aggregator.bundles import BundleServer

    with BundleServer(folder, port) as server:
        typer.echo(server.address)
        server.serve_forever()
