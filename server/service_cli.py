"""`fedspk server run`, and the commands for its devices and operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedspk.cli import JsonFlag
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from server.records import DeviceRecord
    from server.registry import Registry

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The repository's folder.")]
Out = Annotated[
    Path | None,
    typer.Option(help="New file of mode 0600 for the token; else it is printed, this once."),
]

EXAMPLES = {
    "run": "fedspk server run /srv/fedspk/versions --tls-cert chain.pem --tls-key key.pem "
    "--host 0.0.0.0",
    "add-operator": "fedspk server add-operator /srv/fedspk/versions ann --role operator "
    "--out ann.token",
    "remove-operator": "fedspk server remove-operator /srv/fedspk/versions ann",
    "register-device": "fedspk server register-device /srv/fedspk/versions kitchen "
    "--out kitchen.token",
    "revoke-device": "fedspk server revoke-device /srv/fedspk/versions kitchen",
    "devices": "fedspk server devices /srv/fedspk/versions --register register.json",
}


def run(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any free one.", min=0, max=65535)] = 8443,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain in PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key in PEM.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy before this server does TLS.")
    ] = False,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="A private key that is not in DIR/keys; several are welcome."),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="Holds the passphrase of encrypted keys; else the terminal is asked."),
    ] = None,
) -> None:
    """Serve versions, the API and the page, and sign again each day what would expire."""
    from server.keyring import at_hand
    from server.registry import Registry
    from server.repository import Repository
    from server.running import Listening, log_to_stderr, serve
    from server.service import Service

    listening = Listening(host, port, tls_cert, tls_key, behind_proxy)
    listening.check()
    repository = Repository(folder)
    signers = at_hand(repository.keys, key or [], passphrase_file)
    registry = Registry.of(folder)
    log_to_stderr()
    try:
        serve(
            Service(repository, registry, signers),
            listening,
            lambda address: typer.echo(f"{folder}: served at {address}"),
        )
    finally:
        registry.close()


def add_operator(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who.")],
    role: Annotated[
        str,
        typer.Option(
            help="viewer reads; operator also publishes and admits devices; "
            "aggregator hands over what it trained."
        ),
    ],
    out: Out = None,
) -> None:
    """Make a token for a person or a program that uses API or page."""
    registry = _opened(folder)
    _check_new(out)
    token = registry.add_operator(name, role)
    _hand_out(token, out)


def remove_operator(
    folder: Folder, name: Annotated[str, typer.Argument(metavar="NAME", help="Who.")]
) -> None:
    """Let an operator's token count no more, and end his sessions."""
    registry = _opened(folder)
    registry.remove_operator(name)
    typer.echo(f"operator {name}: removed.")


def register_device(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the device.")],
    days: Annotated[float, typer.Option(help="How long the token counts.", min=0.01, max=90)] = 7,
    out: Out = None,
) -> None:
    """Make a one-time token with which one device may register."""
    from datetime import timedelta

    registry = _opened(folder)
    _check_new(out)
    invitation = registry.invite(name, timedelta(days=days))
    _hand_out(invitation.token, out)


def revoke_device(
    folder: Folder,
    device: Annotated[str, typer.Argument(metavar="NAME|ID", help="Which device.")],
) -> None:
    """Refuse a device's reports from now on, and take its key out of the register."""
    registry = _opened(folder)
    record = registry.revoke(device)
    typer.echo(f"device {record.name}: revoked.")


def devices(
    folder: Folder,
    as_json: JsonFlag = False,
    register: Annotated[
        Path | None, typer.Option(help="Write the devices' keys, for the aggregator.")
    ] = None,
) -> None:
    """List devices: what they run, and when they were last seen."""
    registry = _opened(folder)
    if register is not None:
        registry.device_register().save(register)
    found = registry.devices()
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
        return
    for each in found:
        typer.echo(_line(each))


def _opened(folder: Path) -> Registry:
    from server.registry import Registry
    from server.repository import Repository

    return Registry.of(Repository(folder).folder)


def _check_new(out: Path | None) -> None:
    if out is not None and out.exists():
        raise FedspkError(f"{out}: is there already; name a new file.")


def _hand_out(token: str, out: Path | None) -> None:
    from fedspk.files import write_bytes

    if out is None:
        typer.echo(token)
        return
    write_bytes(out, token.encode() + b"\n", mode=0o600)
    typer.echo(f"{out}: holds the token.")


def _line(record: DeviceRecord) -> str:
    words = [f"{record.name:<20} {record.device or '-':<32} {record.state:<10}"]
    if record.report is not None:
        version = record.report.version
        words.append(f"{record.report.state} {f'version {version}' if version else 'a model file'}")
        if record.report.failure:
            words.append(f"({record.report.failure})")
    if record.last_seen is not None:
        words.append(f"seen {record.last_seen:%Y-%m-%d %H:%M}")
    return "  ".join(words).rstrip()
