"""The command `fedspk server`: the signed repository of versions that devices follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedspk.cli import JsonFlag
from fedspk.errors import FedspkError
from server.service_cli import EXAMPLES as SERVING_EXAMPLES
from server.service_cli import (
    Folder,
    add_operator,
    devices,
    register_device,
    remove_operator,
    revoke_device,
    run,
)

if TYPE_CHECKING:
    from fedspk.proposals import Proposal
    from fedspk.release import ChannelName
    from server.repository import Repository, State

Keys = Annotated[
    list[Path] | None,
    typer.Option("--key", help="A private key that is not in DIR/keys; several are welcome."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="Holds the passphrase of encrypted keys; else the terminal is asked."),
]
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="Encrypt new private keys under a passphrase.")
]
Propose = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Publish nothing; write a proposal for the other party to sign."
    ),
]
Share = Annotated[
    float | None, typer.Option(help="Share of devices that the canary channel serves, 0 to 1.")
]
ChannelOption = Annotated[str, typer.Option(help="One of training, canary, stable.")]
Force = Annotated[bool, typer.Option("--force", help="Pass the evaluation gate by.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit log; needed with --force.")]

_EXAMPLES = {
    "init": "fedspk server init /srv/fedspk/versions --encrypt",
    "new-key": "fedspk server new-key aggregator.pem",
    "publish": "fedspk server publish /srv/fedspk/versions --model model.safetensors "
    "--manifest manifest.json --channel canary",
    "promote": "fedspk server promote /srv/fedspk/versions 7 --channel stable",
    "rollback": "fedspk server rollback /srv/fedspk/versions --to 6",
    "sign": "fedspk server sign proposal --key aggregator.pem",
    "accept": "fedspk server accept /srv/fedspk/versions proposal",
    "versions": "fedspk server versions /srv/fedspk/versions --json",
    "renew": "fedspk server renew /srv/fedspk/versions",
    "rotate": "fedspk server rotate /srv/fedspk/versions timestamp --key root-1.pem "
    "--key root-2.pem",
}


def register(app: typer.Typer) -> None:
    """Add this package's commands to `fedspk`."""
    server = typer.Typer(
        no_args_is_help=True, help="Publish model versions that devices can trust."
    )
    commands = (init, new_key, publish, promote, rollback, sign, accept, versions, renew, rotate)
    serving = (run, add_operator, remove_operator, register_device, revoke_device, devices)
    for command in (*commands, *serving):
        name = command.__name__.replace("_", "-")
        example = {**_EXAMPLES, **SERVING_EXAMPLES}[name]
        server.command(name, epilog=f"Example: {example}")(command)
    app.add_typer(server, name="server")


def init(
    folder: Folder,
    aggregator_key: Annotated[
        Path | None,
        typer.Option(help="The aggregator's public key; else a pair is made here, to be moved."),
    ] = None,
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make an empty repository with its keys."""
    from server.creation import create
    from server.keyring import new_passphrase

    create(folder, aggregator_key, new_passphrase(encrypt, passphrase_file))
    typer.echo(f"{folder}: made. Devices trust {folder / 'public/metadata/1.root.json'}.")
    away = "root-*.pem and targets.*.pem to offline media"
    if aggregator_key is None:
        away += ", release-aggregator.*.pem to the aggregator"
    typer.echo(f"Move from {folder / 'keys'}: {away}.")


def new_key(
    file: Annotated[Path, typer.Argument(help="For the private key; FILE.pub gets the public.")],
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a key pair, on the host that will sign with it."""
    from fedspk import signing
    from server.keyring import new_passphrase

    passphrase = new_passphrase(encrypt, passphrase_file)
    signer = signing.new_key(file.name)
    signing.save_key(file, signer, passphrase)
    public = file.with_name(file.name + ".pub")
    signing.save_public_key(public, signer.public_key)
    typer.echo(f"{public}")


def publish(
    folder: Folder,
    model: Annotated[Path, typer.Option(help="A model file (safetensors).")],
    manifest: Annotated[
        Path, typer.Option(help="What is known of it (JSON); the rest is read from the file.")
    ],
    channel: Annotated[
        str | None, typer.Option(help="Channel to name it: training, canary, stable.")
    ] = None,
    share: Share = None,
    force: Force = False,
    reason: Reason = "",
    key: Keys = None,
    passphrase_file: PassphraseFile = None,
    propose: Propose = None,
) -> None:
    """Publish a model file as the next version."""
    from fedspk.files import read_json
    from server import operations

    draft = read_json(manifest)
    if not isinstance(draft, dict):
        raise FedspkError(f"{manifest}: is not a JSON object.")
    name = _channel(channel) if channel else None

    def make(repository: Repository, state: State) -> Proposal:
        return operations.publication(repository, state, model, draft, name, share)

    _release("publish", folder, make, key, passphrase_file, propose, _forced(force, reason))


def promote(
    folder: Folder,
    version: Annotated[int, typer.Argument(metavar="N", help="A published version.")],
    channel: ChannelOption,
    share: Share = None,
    force: Force = False,
    reason: Reason = "",
    key: Keys = None,
    passphrase_file: PassphraseFile = None,
    propose: Propose = None,
) -> None:
    """Let a channel name a published version."""
    from server import operations

    name, forced = _channel(channel), _forced(force, reason)

    def make(repository: Repository, state: State) -> Proposal:
        return operations.promotion(repository, state, version, name, share)

    _release("promote", folder, make, key, passphrase_file, propose, forced)


def rollback(
    folder: Folder,
    to: Annotated[int, typer.Option(metavar="N", help="The version to go back to.")],
    key: Keys = None,
    passphrase_file: PassphraseFile = None,
    propose: Propose = None,
) -> None:
    """Publish an old version's weights as the next version, for all channels that are ahead."""
    from server import operations

    def make(repository: Repository, state: State) -> Proposal:
        return operations.rollback(repository, state, to)

    _release("rollback", folder, make, key, passphrase_file, propose, None)


def sign(
    proposal: Annotated[Path, typer.Argument(help="A folder that the other party wrote.")],
    key: Annotated[
        list[Path], typer.Option(help="This party's private key; to replace it, also the new one.")
    ],
    first: Annotated[
        bool, typer.Option("--first", help="It is the very first release: it follows none.")
    ] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Check a proposal and add this party's signature to it."""
    from fedspk.proposals import Proposal
    from server.keyring import loaded

    proposed = Proposal.read(proposal)
    proposed.check()
    signers = loaded(key, passphrase_file).values()
    proposed.check_base([signer.public_key for signer in signers], is_first=first)
    proposed.sign(signers)
    proposed.write_signatures(proposal)
    typer.echo(f"{proposal}: signed: {_told(proposed)}.")


def accept(
    folder: Folder,
    proposal: Annotated[Path, typer.Argument(help="A folder that the other party signed.")],
    force: Force = False,
    reason: Reason = "",
    key: Keys = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Check a proposal, add the signatures that are at hand, and publish it."""
    from fedspk.proposals import Proposal
    from server import operations

    def make(_: Repository, state: State) -> Proposal:
        proposed = Proposal.read(proposal)
        operations.check_follows(state, proposed)
        return proposed

    _release("accept", folder, make, key, passphrase_file, None, _forced(force, reason))


def versions(folder: Folder, as_json: JsonFlag = False) -> None:
    """List versions, channels, and until when the metadata count."""
    from server.operations import overview
    from server.repository import Repository

    repository = Repository(folder)
    found = overview(repository, repository.read())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for version in found["versions"]:
        typer.echo(_version_line(version, found["channels"].values()))
    for role, metadata in found["metadata"].items():
        typer.echo(f"{role:<10} version {metadata['version']}, until {metadata['expires']}")


def renew(
    folder: Folder,
    key: Keys = None,
    passphrase_file: PassphraseFile = None,
    propose: Propose = None,
) -> None:
    """Sign again what would expire; run it once a day. With --propose, sign the release again."""
    from server import upkeep
    from server.keyring import at_hand
    from server.repository import Repository

    if propose is not None:

        def make(_: Repository, state: State) -> Proposal:
            return upkeep.renewal(state)

        _release("renew", folder, make, key, passphrase_file, propose, None)
        return
    repository = Repository(folder)
    for each in upkeep.renew(repository, at_hand(repository.keys, key or [], passphrase_file)):
        state = "signed again" if each.renewed else each.lacking
        typer.echo(f"{each.role:<10} until {each.expires}{state and '  ' + state}")


def rotate(
    folder: Folder,
    role: Annotated[
        str,
        typer.Argument(
            help="root, targets, snapshot, timestamp, release-server or release-aggregator."
        ),
    ],
    key: Keys = None,
    public: Annotated[
        Path | None, typer.Option(help="The party's new public key, if made elsewhere.")
    ] = None,
    proposal: Annotated[
        Path | None, typer.Option(help="Of `renew --propose`, signed by the other party.")
    ] = None,
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Replace a role's key; needs the root keys, or for release-* the key of targets."""
    from fedspk.proposals import Proposal
    from server import upkeep
    from server.creation import AGGREGATOR, SERVER
    from server.keyring import any_encrypted, at_hand, new_passphrase
    from server.repository import Repository

    if role not in upkeep.ROTATED:
        raise FedspkError(f"role {role!r} is unknown; choose one of {', '.join(upkeep.ROTATED)}.")
    is_party = role in (AGGREGATOR, SERVER)
    if (public or proposal) and not is_party:
        raise FedspkError("--public and --proposal are for release-server and release-aggregator.")
    repository = Repository(folder)
    signers = at_hand(repository.keys, key or [], passphrase_file)
    encrypt = encrypt or any_encrypted(repository.keys)
    passphrase = new_passphrase(encrypt, passphrase_file)
    if is_party:
        signed = Proposal.read(proposal) if proposal else None
        upkeep.rotate_party(repository, role, signers, passphrase, public, signed)
    elif role == "root":
        upkeep.rotate_root(repository, signers, passphrase)
    else:
        upkeep.rotate_role(repository, role, signers, passphrase)
    where = "its private half is where it was made" if public else "the private one lies in keys/"
    if role in ("root", "targets"):
        where = f"move {role}*.pem from {repository.keys} to offline media"
    typer.echo(f"{folder}: the key of {role} is replaced; {where}.")


def _release(
    action: str,
    folder: Path,
    make: Any,
    keys: list[Path] | None,
    passphrase_file: Path | None,
    propose: Path | None,
    forced: str | None,
) -> None:
    """Publish what `make` proposes, or write it to the folder `propose`."""
    from server import operations
    from server.keyring import at_hand
    from server.repository import Repository

    repository = Repository(folder)
    signers = at_hand(repository.keys, keys or [], passphrase_file)
    with repository.changing() as state:
        proposal = make(repository, state)
        if forced is None:
            operations.check_gate(repository, state, proposal)
        if propose is None:
            operations.publish(repository, state, proposal, signers, action, forced)
            typer.echo(f"{folder}: published: {_told(proposal)}.")
            return
        parties = state.targets.signed.get_delegated_role("release").keyids
        proposal.sign(signers[keyid] for keyid in parties if keyid in signers)
        proposal.write(propose)
        typer.echo(f"{propose}: proposed: {_told(proposal)}.")


def _told(proposal: Proposal) -> str:
    changes = proposal.changes
    parts = [f"{kind} version {version}" for kind, version in changes.versions]
    parts += [f"{name} = version {proposal.channel(name).version}" for name in changes.channels]
    parts += [f"{kind} version {version} withdrawn" for kind, version in changes.withdrawn]
    return ", ".join(parts) or "the present release again"


def _version_line(manifest: dict[str, Any], channels: Any) -> str:
    evaluation = manifest["evaluation"]
    rate = f"EER {evaluation['eer']:.2f} %" if evaluation else "not evaluated"
    line = f"{manifest['kind']} {manifest['version']:<5} {manifest['content_hash'][:12]}  "
    line += f"{manifest['created'][:10]}  {rate}"
    if manifest["kind"] == "model":
        names = [each["name"] for each in channels if each["version"] == manifest["version"]]
        line += f"  {' '.join(names)}"
    if manifest["rolled_back_to"]:
        line += f"  (weights of {manifest['rolled_back_to']})"
    return line.rstrip()


def _channel(name: str) -> ChannelName:
    from fedspk.release import CHANNELS

    for known in CHANNELS:
        if name == known:
            return known
    raise FedspkError(f"channel {name!r} is unknown; choose one of {', '.join(CHANNELS)}.")


def _forced(force: bool, reason: str) -> str | None:
    if force and not reason.strip():
        raise FedspkError("--force needs --reason TEXT, for the audit log.")
    if reason and not force:
        raise FedspkError("--reason is for --force.")
    return reason.strip() if force else None
