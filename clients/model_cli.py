"""The commands of `fedspk device` about its model: init, update, use-model, status."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clients.device_options import (
    HomeOption,
    JsonOption,
    PassphraseOption,
    home_folder,
    open_vault,
    print_json,
    report,
)
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from clients.compiled import CompiledModel
    from clients.followed import LastCheck, MainServer
    from clients.vault import Vault
    from clients.vault_key import AskPassphrase, Protection
    from clients.versions import Threshold, Version
    from fedspk.remote import OnBytes

ManifestOption = Annotated[
    Path | None,
    typer.Option("--manifest", help="The model's manifest: it is checked, and gives thresholds."),
]


def register(device: typer.Typer) -> None:
    """Add the commands to the group `device`."""
    device.command(
        epilog="Example: fedspk device init --server https://speakers.example.org:8443 "
        "--root root.json"
    )(init)
    device.command(epilog="Example: fedspk device update --json")(update)
    device.command(
        "use-model", epilog="Example: fedspk device use-model --model version-2.safetensors"
    )(use_model)
    device.command(
        epilog="Example: fedspk device follow --server https://speakers.example.org:8443"
    )(follow)
    device.command(epilog="Example: fedspk device status --json")(status)


def init(
    server: Annotated[
        str | None,
        typer.Option("--server", help="Main server to follow: its address, https://HOST:PORT."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", help="The main server's root.json, from its operator's own hands."),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca", help="Certificates (PEM) that the main server is known by, if private."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File of the one-time token: register the device too."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Model file to start with, for a device without a server."),
    ] = None,
    manifest: ManifestOption = None,
    home: HomeOption = None,
    protect: Annotated[
        Literal["keyring", "passphrase"] | None,
        typer.Option(
            help="What guards the vault's key [default: the keyring where there is one that "
            "encrypts and no --passphrase-file is given, else a passphrase]."
        ),
    ] = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Make this machine a device: an encrypted vault, and the model that it starts with."""
    from clients.followed import MainServer
    from clients.recogniser import create_device
    from clients.secret_input import leave_no_core_dump
    from clients.vault_key import default_protection, passphrase_source
    from clients.versions import read_versions

    if (server is None) == (model is None):
        raise FedspkError("give either --server URL, with its --root FILE, or --model FILE.")
    if model is not None and (root or ca or token_file):
        raise FedspkError("--root, --ca and --token-file belong to a --server.")
    if server is not None and (root is None or manifest is not None):
        raise FedspkError("with --server give its --root FILE, and no --manifest.")
    leave_no_core_dump()
    folder = home_folder(home)
    protection = protect or ("passphrase" if passphrase_file else default_protection())
    ask = passphrase_source(passphrase_file, twice=True)
    if model is not None:
        vault = create_device(folder, *_read_model(model, manifest), protection, ask)
    else:
        assert server is not None
        assert root is not None
        followed = MainServer(server, _content(root), ca)
        vault = _follow_from_now_on(folder, followed, token_file, protection, ask)
        report(vault)
    version = read_versions(vault).current
    typer.echo(
        f"{folder}: device {vault.device[:8]} with {_named(version)}; its vault's key is guarded "
        f"by a {protection}."
    )


def update(
    home: HomeOption = None, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """Look for a new version at the main server, and change to it; once."""
    from clients.updater import Updater

    vault = open_vault(home, passphrase_file)
    with _bytes_bar() as on_bytes:
        outcome = Updater(vault, on_bytes=on_bytes).check(again=True)
    report(vault, outcome)
    if outcome.trouble:
        raise FedspkError(outcome.trouble.sentence)
    if as_json:
        print_json(
            version=outcome.version.number,
            model=outcome.version.model_hash,
            channel=outcome.channel and outcome.channel.name,
            changed=outcome.changed,
            re_enrolled=outcome.re_enrolled,
        )
    elif outcome.channel is None:
        typer.echo("the main server has published no version for devices; nothing was changed.")
    elif outcome.changed:
        typer.echo(
            f"{_named(outcome.version)} is in use now; users re-enrolled: {outcome.re_enrolled}."
        )
    else:
        typer.echo(f"{_named(outcome.version)} is in use and the latest for this device.")


def use_model(
    model: Annotated[Path | None, typer.Option("--model", help="Model file to change to.")] = None,
    manifest: ManifestOption = None,
    previous: Annotated[
        bool, typer.Option("--previous", help="Go back to the version before, at once.")
    ] = False,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Re-enrol all users under another model version and change to it in one step."""
    from clients.followed import leave_version, read_check
    from clients.recogniser import Recogniser

    if previous == (model is not None) or (previous and manifest):
        raise FedspkError("give either --model FILE, with its --manifest if any, or --previous.")
    vault = open_vault(home, passphrase_file)
    recogniser = Recogniser(vault)
    if model is None:
        if recogniser.versions.previous is not None:
            leave_version(vault)
        count = recogniser.use_previous()
    else:
        prepared = recogniser.prepare(*_read_model(model, manifest))
        leave_version(vault)
        count = recogniser.swap(prepared)
    current = recogniser.versions.current
    typer.echo(f"{_named(current)} is in use; users re-enrolled: {count}.")
    left = _left(current, read_check(vault))
    if left:
        typer.echo(f"{left}.")
    report(vault)


def follow(
    server: Annotated[
        str, typer.Option("--server", help="Main server to follow: its address, https://HOST:PORT.")
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            help="Its root.json, from its operator's own hands [default: the root that the device "
            "trusts; the server must be the same one].",
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", help="Certificates (PEM) that it is known by, if private."),
    ] = None,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Follow a main server at another address, or another one; users stay enrolled."""
    from clients.followed import MainServer, read_server, registered_with
    from clients.updater import follow_server
    from clients.vault import VaultError

    vault, was_registered = open_vault(home, passphrase_file), False
    try:
        before = read_server(vault)
        was_registered = registered_with(vault) is not None
    except VaultError:
        if root is None:
            raise
        before = None
    if root is None and before is None:
        raise FedspkError("this device follows no main server yet; give the server's --root FILE.")
    trusted = _content(root) if root else before.root if before else b""
    follow_server(vault, MainServer(server, trusted, ca))
    typer.echo(f"device {vault.device[:8]} follows {server}.")
    if before is None:
        typer.echo("A `fedspk device run` that runs already follows it when it is started anew.")
    if was_registered and registered_with(vault) is None:
        typer.echo("That server does not know the device yet: see `fedspk device register`.")


def status(
    home: HomeOption = None, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """Show the model versions and who is enrolled."""
    from clients.answers import device_status
    from clients.followed import read_check, read_server, registered_with
    from clients.vault_key import protection_of
    from clients.versions import read_versions

    vault = open_vault(home, passphrase_file)
    versions, users = read_versions(vault), vault.users()
    protection = protection_of(vault.home)
    server, check = read_server(vault), read_check(vault)
    current, previous = versions.current, versions.previous
    if as_json:
        print_json(**device_status(vault, versions))
        return
    typer.echo(f"device    {vault.device[:8]} in {vault.home}, key guarded by a {protection}")
    typer.echo(f"model     {_named(current)}, {_calibration(current)}")
    typer.echo(f"previous  {_named(previous) if previous else 'none'}")
    typer.echo(f"server    {_following(server, check)}")
    if server is not None:
        known = registered_with(vault) or "nobody; see `fedspk device register`"
        typer.echo(f"known to  {known}")
    left = _left(current, check)
    if left:
        typer.echo(f"left      {left}")
    for user in users:
        typer.echo(
            f"user      {user.name}, {len(user.recordings)} recordings, {user.seconds:.0f} s"
        )
    for user_id, error in vault.unserved(current.model_hash).items():
        typer.echo(f"damaged   {user_id}: {error}")


def _left(current: Version, check: LastCheck | None) -> str:
    """Return which version the device does not take again by itself; empty if there is none."""
    left = check.version_left(current) if check else None
    if left is None:
        return ""
    return (
        f"version {left} is not taken again until the server publishes a newer one; "
        "`fedspk device update` takes it all the same"
    )


def _follow_from_now_on(
    folder: Path,
    server: MainServer,
    token_file: Path | None,
    protection: Protection,
    ask: AskPassphrase,
) -> Vault:
    """Make a device that follows a main server, and register it if there is a token."""
    from clients.registration import TOKEN, register
    from clients.updater import create_following_device

    token = TOKEN.read(token_file).decode() if token_file else None
    if protection == "passphrase":
        ask = _asked(ask)  # before the download: a person may have to type it
    with _bytes_bar() as on_bytes:
        vault = create_following_device(folder, server, protection, ask, on_bytes)
    if token is not None:
        try:
            register(vault, server.address, token, server.ca)
        except FedspkError as error:
            raise FedspkError(
                f"{folder}: is a device now, but not registered ({error}) Do that with "
                "`fedspk device register`."
            ) from error
    return vault


def _asked(ask: AskPassphrase) -> AskPassphrase:
    passphrase = ask()
    return lambda: passphrase


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error


@contextmanager
def _bytes_bar() -> Iterator[OnBytes]:
    """Yield what shows how much of a download has come."""
    from fedspk.progress import progress

    bar = progress(description="download", unit="B")
    bar.unit_scale = True

    def show(got: int, total: int) -> None:
        bar.total = total
        bar.update(got - bar.n)

    with bar:
        yield show


def _read_model(model: Path, manifest: Path | None) -> tuple[CompiledModel, Sequence[Threshold]]:
    """Compile a model file; with a manifest, check it first and take its thresholds."""
    from clients.compiled import compile_model
    from clients.versions import thresholds_of

    if manifest is None:
        return compile_model(model), ()
    from fedspk.release import Manifest, check_client, check_model_file

    stated = Manifest.from_json(_content(manifest), str(manifest))
    if stated.kind != "model":
        raise FedspkError(f"{manifest}: describes no speaker model; use one that does.")
    check_client(stated, str(manifest))
    check_model_file(model, stated)
    return compile_model(model), thresholds_of(stated)


def _calibration(version: Version) -> str:
    rates = [f"{100 * each.false_accept:g} %" for each in version.thresholds if each.false_accept]
    return f"calibrated for {', '.join(rates)} false accepts" if rates else "not calibrated"


def _named(version: Version) -> str:
    number = "" if version.number is None else f"version {version.number}, "
    return f"{number}model {version.model_hash[:12]}"


def _following(server: MainServer | None, check: LastCheck | None) -> str:
    if server is None:
        return "none"
    if check is None:
        return server.address
    channel = f", channel {check.channel}" if check.channel else ""
    looked = f"last looked {check.at:%Y-%m-%d %H:%M} UTC"
    trouble = f"\ntrouble   {check.trouble.sentence}" if check.trouble else ""
    return f"{server.address}{channel}, {looked}{trouble}"
