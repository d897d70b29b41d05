"""What an operator does with a repository: publish, promote, roll back, accept.

Each change is a `Proposal`. With the keys of both parties at hand it is signed and published at
once; else it goes to a folder, which the other party signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedspk.errors import FedspkError
from fedspk.proposals import RELEASE, Content, Proposal, latest_version, versions
from fedspk.release import (
    CHANNELS,
    Channel,
    ChannelName,
    Kind,
    Manifest,
    channel_path,
    draft_manifest,
    manifest_path,
    model_path,
    replaced,
)
from server.faults import ConflictError, NotFoundError
from server.gate import check_promotion
from server.repository import Repository, Signers, State, now

_GATED: tuple[ChannelName, ...] = ("canary", "stable")


def publication(
    repository: Repository,
    state: State,
    model: Path,
    draft: Mapping[str, Any],
    channel: ChannelName | None = None,
    share: float | None = None,
) -> Proposal:
    """Return the proposal of a new version, and of a channel that is to name it.

    Args:
        repository, state: what to add to.
        model: a model file.
        draft: its manifest, or some of its fields (see `fedspk.release.draft_manifest`).
        channel: which channel is to name it.
        share: of the devices, for the canary channel.

    Raises:
        FedspkError: the model is broken or disagrees with the draft, or the draft is wrong.
    """
    kind: Kind = "gan" if draft.get("kind") == "gan" else "model"
    if kind == "gan" and channel:
        raise FedspkError("a channel names speaker models; publish a generator without --channel.")
    version = latest_version(state.released, kind) + 1
    defaults: dict[str, Any] = {"created": now().isoformat()}
    present = channel and _replaced(repository, state, channel)
    if present:
        parent = repository.manifest(state, "model", present.version)
        defaults["parent"] = {"version": parent.version, "content_hash": parent.content_hash}
    manifest = draft_manifest(draft, model, version, **defaults)
    files: dict[str, Content] = {
        model_path(kind, version): Path(model),
        manifest_path(kind, version): manifest.to_json(),
    }
    if channel:
        files |= _channel_file(repository, state, channel, version, share)
    return Proposal.following(state.release, files, now())


def promotion(
    repository: Repository,
    state: State,
    version: int,
    channel: ChannelName,
    share: float | None = None,
) -> Proposal:
    """Return the proposal of a channel that names a published version.

    Raises:
        FedspkError: there is no such version, or the channel names it already.
    """
    _check_published(state, version)
    files = _channel_file(repository, state, channel, version, share)
    present = repository.channel(state, channel)
    if present and files == {channel_path(channel): present.to_json()}:
        raise ConflictError(f"channel {channel} names version {version} already.")
    return Proposal.following(state.release, files, now())


def rollback(repository: Repository, state: State, to: int) -> Proposal:
    """Return the proposal to go back: version `to`'s weights as a new version.

    Every channel that names a later version than `to` will name the new one.

    Raises:
        FedspkError: there is no such version, its file is damaged, or no channel is ahead of it.
    """
    _check_published(state, to)
    ahead = [
        channel
        for channel in (repository.channel(state, name) for name in CHANNELS)
        if channel and channel.version > to
    ]
    if not ahead:
        raise ConflictError(f"no channel names a later version than {to}: nothing is to be undone.")
    release = state.release
    assert release is not None
    version = latest_version(release.signed, "model") + 1
    replaced = repository.manifest(state, "model", max(channel.version for channel in ahead))
    old = repository.manifest(state, "model", to)
    changes = {
        "version": version,
        "parent": {"version": replaced.version, "content_hash": replaced.content_hash},
        "created": now(),
        "rolled_back_to": to,
        "intermediate": False,
    }
    manifest = Manifest.model_validate({**old.model_dump(), **changes})
    files: dict[str, Content] = {
        model_path("model", version): repository.target(state, model_path("model", to)),
        manifest_path("model", version): manifest.to_json(),
    }
    for channel in ahead:
        moved = channel.model_copy(update={"version": version})
        files[channel_path(channel.name)] = moved.to_json()
    proposal = Proposal.following(release, files, now())
    targets = proposal.release.signed.targets
    if targets[model_path("model", version)].hashes != targets[model_path("model", to)].hashes:
        raise FedspkError(f"the model file of version {to} is damaged; restore it from a backup.")
    return proposal


def check_gate(repository: Repository, state: State, proposal: Proposal) -> None:
    """Accept a proposal whose canary and stable channels get no worse model.

    A model is compared with the one that the channel's devices run now.

    Raises:
        FedspkError: a version is worse than that, or cannot be compared with it.
    """
    for name in proposal.changes.channels:
        if name not in _GATED:
            continue
        present = _replaced(repository, state, name)
        version = proposal.channel(name).version
        if present and version != present.version:
            added = ("model", version) in proposal.changes.versions
            candidate = (
                proposal.manifest("model", version)
                if added
                else repository.manifest(state, "model", version)
            )
            before = repository.manifest(state, "model", present.version)
            check_promotion(candidate, before)


def check_follows(state: State, proposal: Proposal) -> None:
    """Accept a proposal that keeps all rules and follows the present release.

    Raises:
        FedspkError: another release has been published since it was made, or it breaks a rule.
    """
    present = state.release
    if (proposal.base and proposal.base.signed) != (present and present.signed):
        version = present.signed.version if present else 0
        raise ConflictError(
            f"the proposal does not follow the present release, version {version}; make it anew."
        )
    proposal.check()


def publish(
    repository: Repository,
    state: State,
    proposal: Proposal,
    signers: Signers,
    action: str,
    forced: str | None = None,
    who: str | None = None,
) -> State:
    """Sign a proposal with the keys at hand and publish it.

    Args:
        repository, state: what to publish in.
        proposal: made here, or accepted by `check_follows`.
        signers: keys at hand.
        action: the audit log's word for it.
        forced: why the evaluation gate was passed by, for the audit log.
        who: an operator of the API; None for the user of this process.

    Raises:
        FedspkError: the proposal breaks a rule, a signature is missing, or the repository cannot
            be written.
    """
    proposal.check()
    _check_rising(repository, state, proposal)
    _check_parents(repository, state, proposal)
    _check_withdrawals(repository, state, proposal)
    repository.sign(state, RELEASE, proposal.release, signers)
    changes = proposal.changes
    details: dict[str, Any] = {
        "release": proposal.release.signed.version,
        "versions": [f"{kind} {version}" for kind, version in changes.versions],
        "channels": {name: proposal.channel(name).version for name in changes.channels},
    }
    if changes.withdrawn:
        details["withdrawn"] = [f"{kind} {version}" for kind, version in changes.withdrawn]
    trained = _rounds(proposal)
    if trained:
        details["rounds"] = trained
    if forced is not None:
        details["forced"] = forced
    return repository.commit(
        state,
        signers,
        action,
        who=who,
        details=details,
        files=proposal.files,
        release=proposal.release,
    )


def overview(repository: Repository, state: State) -> dict[str, Any]:
    """Return versions with their manifests, channels, and until when metadata count, as JSON."""
    kinds: tuple[Kind, ...] = ("model", "gan")
    channels = [repository.channel(state, name) for name in CHANNELS]
    return {
        "versions": [
            repository.manifest(state, kind, version).model_dump(mode="json")
            for kind in kinds
            for version in versions(state.released, kind)
        ],
        "channels": {each.name: each.model_dump(mode="json") for each in channels if each},
        "metadata": {
            role: {"version": each.signed.version, "expires": each.signed.expires.isoformat()}
            for role, each in state.roles().items()
        },
    }


def _replaced(repository: Repository, state: State, name: ChannelName) -> Channel | None:
    return replaced(name, lambda each: repository.channel(state, each))


def _channel_file(
    repository: Repository, state: State, name: ChannelName, version: int, share: float | None
) -> dict[str, Content]:
    channel = Channel.naming(name, version, repository.channel(state, name), share)
    return {channel_path(name): channel.to_json()}


def _rounds(proposal: Proposal) -> list[dict[str, int | None]]:
    """Return who took part in the rounds that new versions come from: the log outlives them."""
    added = [proposal.manifest(*each) for each in proposal.changes.versions]
    return [
        {
            "version": each.version,
            "round": each.training.round,
            "cohort": each.training.cohort_size,
            "survivors": each.training.survivors,
        }
        for each in added
        if each.training and each.training.round is not None and each.rolled_back_to is None
    ]


def _check_rising(repository: Repository, state: State, proposal: Proposal) -> None:
    """Accept channels that name no older version than before."""
    for name in proposal.changes.channels:
        present, version = repository.channel(state, name), proposal.channel(name).version
        if present and version < present.version:
            raise FedspkError(
                f"channel {name} names version {present.version} and cannot name version {version} "
                f"again; `fedspk server rollback --to {version}` publishes its weights anew."
            )


def _check_parents(repository: Repository, state: State, proposal: Proposal) -> None:
    """Accept new versions whose parents are published, with the hashes that they state."""
    for kind, version in proposal.changes.versions:
        parent = proposal.manifest(kind, version).parent
        if parent is None:
            continue
        if (
            parent.version not in versions(state.released, kind)
            or repository.manifest(state, kind, parent.version).content_hash != parent.content_hash
        ):
            raise FedspkError(
                f"the manifest's parent is {kind} version {parent.version} with the content hash "
                f"{parent.content_hash[:12]}..., which is not published; correct it or leave it "
                "out."
            )


def _check_withdrawals(repository: Repository, state: State, proposal: Proposal) -> None:
    """Accept the withdrawal of intermediate versions that no channel will name."""
    changes = proposal.changes
    if not changes.withdrawn:
        return
    channels = [
        proposal.channel(name) if name in changes.channels else repository.channel(state, name)
        for name in CHANNELS
    ]
    named = {("model", each.version): each.name for each in channels if each}
    for kind, version in changes.withdrawn:
        if (kind, version) in named:
            raise FedspkError(
                f"the proposal withdraws version {version}, which channel {named[kind, version]} "
                "names."
            )
        if not repository.manifest(state, kind, version).intermediate:
            raise FedspkError(
                f"the proposal withdraws {kind} version {version}; only a run's intermediate "
                "versions may be."
            )


def _check_published(state: State, version: int) -> None:
    known = versions(state.released, "model")
    if version not in known:
        newest = f"the newest is {known[-1]}" if known else "none is published yet"
        raise NotFoundError(f"there is no version {version}; {newest}.")
