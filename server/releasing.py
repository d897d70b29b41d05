"""Changes of the repository that came through the API: held to the rules, signed, published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tuf.api.metadata import Metadata, Targets

from fedspk.errors import FedspkError
from fedspk.proposals import RELEASE, Content, Proposal
from fedspk.release import check_client, manifest_path, version_at
from server import operations
from server.faults import ConflictError, ForbiddenError, LacksKeyError
from server.repository import Repository, State
from server.settings import Settings

if TYPE_CHECKING:
    from server.service import Service

Make = Callable[[Repository, State], Proposal]


def release(
    service: Service, action: str, who: str, make: Make, forced: str | None = None
) -> Proposal:
    """Publish what `make` proposes and return it.

    Args:
        service: where, and the keys.
        action, who: for the audit log.
        make: gets the repository and its state, which nobody else changes meanwhile.
        forced: why the evaluation gate is passed by, for the audit log.

    Raises:
        ConflictError: the repository is being changed, or the change does not fit its state.
        LacksKeyError: a key is elsewhere.
        FedspkError: the change breaks a rule, or cannot be written.
    """
    repository = service.repository
    with repository.changing() as state:
        proposal = make(repository, state)
        if forced is None:
            operations.check_gate(repository, state, proposal)
        try:
            operations.publish(repository, state, proposal, service.signers, action, forced, who)
        except LacksKeyError as error:
            raise LacksKeyError(
                f"{error} This server does not hold it: use the command with --propose, and have "
                "the proposal signed where the key is."
            ) from error
    for path in added_models(proposal):
        service.uploads.remove(proposal.release.signed.targets[path].hashes["sha256"])
    return proposal


def proposed(
    service: Service, state: State, metadata: Metadata[Targets], files: Mapping[str, bytes]
) -> Proposal:
    """Return the proposal of another party, checked.

    Args:
        service: holds the uploaded model files.
        state: that the proposal must follow.
        metadata: of the release, with that party's signature.
        files: its new manifests and channels.

    Raises:
        ConflictError: it does not follow the present release.
        NotFoundError: a model file was not uploaded.
        FedspkError: it breaks a rule.
    """
    present = state.release.signed.version if state.release else 0
    if metadata.signed.version != present + 1:
        raise ConflictError(
            f"the proposal has version {metadata.signed.version} and does not follow the present "
            f"release, version {present}; make it anew."
        )
    # Nobody else's signature is published.
    parties = state.targets.signed.get_delegated_role(RELEASE).keyids
    for keyid in metadata.signatures.keys() - set(parties):
        del metadata.signatures[keyid]
    bare = Proposal(metadata, state.release)
    contents: dict[str, Content] = {
        path: service.uploads.path(metadata.signed.targets[path].hashes["sha256"])
        for path in added_models(bare)
    }
    expected = _new_paths(bare) - contents.keys()
    for path in sorted(expected ^ files.keys()):
        reason = "is missing" if path in expected else "is not new in the release"
        raise FedspkError(f"files: {path[:200]!r} {reason}.")
    proposal = Proposal(metadata, state.release, {**contents, **files})
    operations.check_follows(state, proposal)
    return proposal


def check_aggregator(service: Service, state: State, proposal: Proposal) -> None:
    """Accept a proposal that a token of the role aggregator may bring: what a run hands over.

    It may add speaker models that any client of this server's version can use, and let the channel
    "training" name one; "canary" only where the server's settings say so, for the same devices, and
    only a whole version that comes with it.

    Raises:
        ForbiddenError: it is for operators.
    """
    allowed = ["training"]
    if Settings.read(service.repository.folder).aggregator_canary:
        allowed.append("canary")
    for name in proposal.changes.channels:
        if name not in allowed:
            reason = " unless server.toml says aggregator-canary = true" if name == "canary" else ""
            raise ForbiddenError(f"the role aggregator may not set channel {name}{reason}.")
    if "canary" in proposal.changes.channels:
        present, wanted = service.repository.channel(state, "canary"), proposal.channel("canary")
        if present is None:
            raise ForbiddenError("the first version of channel canary is for an operator to name.")
        if (wanted.share, wanted.salt) != (present.share, present.salt):
            raise ForbiddenError("the role aggregator may not change which devices are canaries.")
        named = "model", wanted.version
        if named not in proposal.changes.versions or proposal.manifest(*named).intermediate:
            raise ForbiddenError(
                "the role aggregator may let channel canary name a new, whole version only."
            )
    for kind, version in proposal.changes.versions:
        if kind != "model":
            raise ForbiddenError("the role aggregator may publish speaker models only.")
        manifest = proposal.manifest(kind, version)
        if manifest.rolled_back_to is not None:
            raise ForbiddenError("the role aggregator may not go back to an earlier version.")
        try:
            check_client(manifest, manifest_path(kind, version))
        except FedspkError as error:
            raise ForbiddenError(f"devices would be left behind: {error}") from error


def is_released(state: State, metadata: Metadata[Targets]) -> bool:
    """Say whether metadata are those of the present release."""
    return state.release is not None and state.release.signed == metadata.signed


def added_models(proposal: Proposal) -> list[str]:
    """Return the targets of model files that a release adds.

    Raises:
        FedspkError: it breaks a rule.
    """
    added = proposal.changes.versions
    return [
        path
        for path in sorted(_new_paths(proposal))
        if path.endswith(".safetensors") and version_at(path) in added
    ]


def _new_paths(proposal: Proposal) -> set[str]:
    before = proposal.base.signed.targets if proposal.base else {}
    targets = proposal.release.signed.targets
    return {path for path, target in targets.items() if before.get(path) != target}
