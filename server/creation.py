"""A new repository: its roles, their keys, and the first metadata.

| role      | signatures | key                                         |
|-----------|------------|---------------------------------------------|
| root      | 2 of 3     | offline                                     |
| targets   | 1 of 1     | offline; only says who may release          |
| release   | 2 of 2     | one with the aggregator, one with the server|
| snapshot  | 1 of 1     | on the server                               |
| timestamp | 1 of 1     | on the server                               |
"""

from __future__ import annotations

import errno
import glob
import secrets
import shutil
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from fedspk.errors import FedspkError
from fedspk.files import PARTIAL, explained, sync, write_bytes
from fedspk.proposals import RELEASE
from fedspk.signing import load_public_key, new_key, owned, save_key
from server.repository import LIFETIMES, Repository, listing, now

ROOT_KEYS = ("root-1", "root-2", "root-3")
ROOT_THRESHOLD = 2
"""One root key may be lost, and one stolen root key signs nothing."""

ONLINE = (Snapshot.type, Timestamp.type)
AGGREGATOR, SERVER = "release-aggregator", "release-server"
"""The two parties of a release; each must sign."""

_RELEASED = ["models/*/*", "gan/*/*", "channels/*"]


def create(folder: Path, aggregator: Path | None = None, passphrase: bytes | None = None) -> None:
    """Make an empty repository and its keys, in one instant.

    Args:
        folder: where; it must not exist, or be empty.
        aggregator: the aggregator's public key; without, its key pair is made here.
        passphrase: encrypts the private keys.

    Raises:
        FedspkError: there is something in the folder, or it cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FedspkError(f"{folder}: is there already and not empty; name a new folder.")
    made = {owner: new_key(owner) for owner in (*ROOT_KEYS, Targets.type, *ONLINE, SERVER)}
    public = {owner: signer.public_key for owner, signer in made.items()}
    if aggregator is not None:
        public[AGGREGATOR] = owned(load_public_key(aggregator), AGGREGATOR)
    else:
        made[AGGREGATOR] = new_key(AGGREGATOR)
        public[AGGREGATOR] = made[AGGREGATOR].public_key

    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a killed creation
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        hidden.mkdir(parents=True)
        (hidden / "keys").mkdir(mode=0o700)
        for owner, signer in made.items():
            save_key(key_file(hidden / "keys", owner, signer.public_key), signer, passphrase)
        for name in ("public", "public/targets", "public/metadata"):
            (hidden / name).mkdir()
            (hidden / name).chmod(0o755)  # for a web server, whatever the umask
        _write_first_metadata(hidden / "public" / "metadata", made, public)
        Repository(hidden).audit.append("init", 1)
        hidden.replace(folder)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise explained(error, folder) from error
        raise FedspkError(f"{folder}: is a mount point; name a new folder inside it.") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    sync(folder.parent)


def key_file(folder: Path, owner: str, key: SSlibKey) -> Path:
    """Return where a key lies in a key folder."""
    return folder / f"{owner}.{key.keyid[:8]}.pem"


def _write_first_metadata(
    folder: Path, made: dict[str, CryptoSigner], public: dict[str, SSlibKey]
) -> None:
    root = Metadata(Root(expires=now() + LIFETIMES[Root.type]))
    for owner in ROOT_KEYS:
        root.signed.add_key(public[owner], Root.type)
    for role in (Targets.type, *ONLINE):
        root.signed.add_key(public[role], role)
    root.signed.roles[Root.type].threshold = ROOT_THRESHOLD
    for owner in ROOT_KEYS:
        root.sign(made[owner], append=True)

    parties = [public[AGGREGATOR], public[SERVER]]
    release = DelegatedRole(
        RELEASE, [key.keyid for key in parties], len(parties), terminating=True, paths=_RELEASED
    )
    delegations = Delegations({key.keyid: key for key in parties}, {RELEASE: release})
    targets = Metadata(Targets(expires=now() + LIFETIMES[Targets.type], delegations=delegations))
    targets.sign(made[Targets.type])

    snapshot = Metadata(
        Snapshot(expires=now() + LIFETIMES[Snapshot.type], meta={"targets.json": listing(targets)})
    )
    snapshot.sign(made[Snapshot.type])
    timestamp = Metadata(
        Timestamp(expires=now() + LIFETIMES[Timestamp.type], snapshot_meta=listing(snapshot))
    )
    timestamp.sign(made[Timestamp.type])

    write_bytes(folder / "1.root.json", root.to_bytes())
    write_bytes(folder / "1.targets.json", targets.to_bytes())
    write_bytes(folder / "1.snapshot.json", snapshot.to_bytes())
    write_bytes(folder / "timestamp.json", timestamp.to_bytes())
