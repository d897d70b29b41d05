"""What time asks for: metadata signed again before they expire, and keys replaced.

A key of root, targets, snapshot or timestamp is replaced in three steps, so that devices accept
what lies there after each: a root that lists the old key and the new one, the role's metadata
signed with both, a root without the old key. A party's key of the role "release" is replaced at
once, by one snapshot: no instant lets one party sign with two keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from fedspk.errors import FedspkError
from fedspk.proposals import RELEASE, Proposal
from fedspk.signing import load_public_key, new_key, owned, save_key
from server.creation import AGGREGATOR, ROOT_KEYS, SERVER, key_file
from server.operations import check_follows
from server.repository import LIFETIMES, Repository, Signers, State, following, now, owner_of

ROTATED = (Root.type, Targets.type, Snapshot.type, Timestamp.type, SERVER, AGGREGATOR)


@dataclass(frozen=True)
class Upkeep:
    """What became of a role: signed again, or why it could not be."""

    role: str
    expires: str
    renewed: bool
    lacking: str = ""


def renew(repository: Repository, signers: Signers) -> list[Upkeep]:
    """Sign again the timestamp, and whatever has lived for half of its lifetime.

    Roles whose keys are not at hand are left as they are, and told.

    Raises:
        FedspkError: the key of snapshot or timestamp is missing, or nothing can be written.
    """
    lacking: dict[str, str] = {}
    signed: dict[str, Metadata[Any]] = {}
    with repository.changing() as present:
        state, before = present, present.roles()
        for role in (Root.type, Targets.type, RELEASE):
            if role in before and _is_due(role, before[role]):
                fresh = following(before[role], role)
                try:
                    repository.sign(state, role, fresh, signers)
                    signed[role] = fresh
                except FedspkError as error:
                    lacking[role] = str(error)
        if Root.type in signed:
            root = signed.pop(Root.type)
            state = repository.commit_root(state, root, "renew", {"role": Root.type})
        state = repository.commit(
            state,
            signers,
            "renew",
            details={"roles": [*signed]},
            targets=signed.get(Targets.type),
            release=signed.get(RELEASE),
            snapshot=bool(signed) or _is_due(Snapshot.type, before[Snapshot.type]),
        )
    return [
        Upkeep(
            role,
            metadata.signed.expires.isoformat(),
            metadata.signed.version > before[role].signed.version,
            lacking.get(role, ""),
        )
        for role, metadata in state.roles().items()
    ]


def renewal(state: State) -> Proposal:
    """Return the proposal to sign the present release again.

    Raises:
        FedspkError: there is no release yet.
    """
    if state.release is None:
        raise FedspkError("nothing is released yet: there is no release to sign again.")
    return Proposal.following(state.release, {}, now())


def rotate_root(repository: Repository, signers: Signers, passphrase: bytes | None) -> None:
    """Replace all root keys.

    Raises:
        FedspkError: too few of the old ones are at hand.
    """
    with repository.changing() as present:
        root = following(present.root, Root.type)
        fresh = [new_key(owner) for owner in ROOT_KEYS]
        _replace_keys(root.signed, Root.type, fresh)
        for signer in (*_listed(present.root.signed, Root.type, signers), *fresh):
            root.sign(signer, append=True)
        repository.check_root(present, root)
        for owner, signer in zip(ROOT_KEYS, fresh, strict=True):
            _save(repository, owner, signer, passphrase)
        state = repository.commit_root(present, root, "rotate", {"role": Root.type})
        for owner in ROOT_KEYS:
            _forget_unlisted(repository, state, owner)


def rotate_role(
    repository: Repository, role: str, signers: Signers, passphrase: bytes | None
) -> None:
    """Replace the key of targets, snapshot or timestamp.

    Raises:
        FedspkError: too few root keys are at hand.
    """
    with repository.changing() as present:
        details = {"role": role}
        fresh = new_key(role)
        signers = {**signers, fresh.public_key.keyid: fresh}
        both = following(present.root, Root.type)
        both.signed.add_key(fresh.public_key, role)
        repository.sign(present, Root.type, both, signers)
        repository.check_root(present, both)
        _save(repository, role, fresh, passphrase)
        state = repository.commit_root(present, both, "rotate", details)

        targets = None
        if role == Targets.type:
            targets = following(state.targets, role)
            repository.sign(state, role, targets, signers)
        state = repository.commit(state, signers, "rotate", details=details, targets=targets)

        only = following(state.root, Root.type)
        _replace_keys(only.signed, role, [fresh])
        repository.sign(state, Root.type, only, signers)
        state = repository.commit_root(state, only, "rotate", details)
        _forget_unlisted(repository, state, role)


def rotate_party(
    repository: Repository,
    owner: str,
    signers: Signers,
    passphrase: bytes | None,
    public: Path | None = None,
    proposal: Proposal | None = None,
) -> None:
    """Replace the aggregator's or the server's key of the role "release".

    Args:
        repository: what to change.
        owner: whose key.
        signers: keys at hand: of targets, and of the parties unless there is a `proposal`.
        passphrase: encrypts the new key.
        public: the new public key, where the private one is elsewhere; else a pair is made.
        proposal: the present release to be signed again, with signatures given elsewhere.

    Raises:
        FedspkError: a signature is missing.
    """
    with repository.changing() as state:
        if public is not None:
            key, fresh = owned(load_public_key(public), owner), None
        else:
            fresh = new_key(owner)
            key = fresh.public_key
            signers = {**signers, key.keyid: fresh}
        listed = {**state.root.signed.keys, **_party_keys(state)}
        if key.keyid in listed:
            raise FedspkError(
                f"{public}: is the key of {owner_of(listed[key.keyid])}; every one has its own."
            )
        targets = following(state.targets, Targets.type)
        _replace_party(targets.signed, owner, key)
        repository.sign(state, Targets.type, targets, signers)
        release = None
        if state.release is not None:
            proposal = proposal or renewal(state)
            check_follows(state, proposal)
            if proposal.files or proposal.changes.withdrawn:
                raise FedspkError("the proposal does more than to sign the present release again.")
            release = proposal.release
            repository.sign(replace(state, targets=targets), RELEASE, release, signers)
        if fresh is not None:
            _save(repository, owner, fresh, passphrase)
        details = {"role": owner}
        after = repository.commit(
            state, signers, "rotate", details=details, targets=targets, release=release
        )
        _forget_unlisted(repository, after, owner)


def _is_due(role: str, metadata: Metadata[Any]) -> bool:
    left = metadata.signed.expires - now()
    return bool(left < LIFETIMES[role] / 2)


def _replace_keys(root: Root, role: str, fresh: list[CryptoSigner]) -> None:
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    for signer in fresh:
        root.add_key(signer.public_key, role)


def _replace_party(targets: Targets, owner: str, key: SSlibKey) -> None:
    for keyid in list(targets.get_delegated_role(RELEASE).keyids):
        if owner_of(targets.get_key(keyid)) == owner:
            targets.revoke_key(keyid, RELEASE)
    targets.add_key(key, RELEASE)


def _party_keys(state: State) -> dict[str, Key]:
    delegations = state.targets.signed.delegations
    assert delegations is not None
    return delegations.keys


def _listed(root: Root, role: str, signers: Signers) -> list[CryptoSigner]:
    return [signers[keyid] for keyid in root.roles[role].keyids if keyid in signers]


def _save(
    repository: Repository, owner: str, signer: CryptoSigner, passphrase: bytes | None
) -> None:
    save_key(key_file(repository.keys, owner, signer.public_key), signer, passphrase)


def _forget_unlisted(repository: Repository, state: State, owner: str) -> None:
    """Delete the owner's private keys that no metadata list any more."""
    listed = {keyid[:8] for keyid in (*state.root.signed.keys, *_party_keys(state))}
    for path in repository.keys.glob(f"{owner}.*.pem"):
        if path.name.split(".")[-2] not in listed:
            path.unlink()
