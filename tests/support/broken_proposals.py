"""Proposals of two parties, whole ones and every kind that breaks a rule, and their folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Delegations, TargetFile

from fedspk.files import write_bytes
from fedspk.proposals import Content, Proposal
from fedspk.release import (
    Channel,
    channel_at,
    channel_path,
    draft_manifest,
    manifest_path,
    model_path,
    version_at,
)

NOW = datetime.now(UTC).replace(microsecond=0)


def version_files(model: Path, number: int, channel: int | None = None) -> dict[str, Content]:
    manifest = draft_manifest({}, model, number, created=NOW.isoformat())
    stable = Channel(name="stable", version=channel or number)
    return {
        model_path("model", number): model,
        manifest_path("model", number): manifest.to_json(),
        channel_path("stable"): stable.to_json(),
    }


def second_version(first: Proposal, model: Path) -> Proposal:
    """Return the proposal of version 2, in stable, after the release of version 1."""
    return Proposal.following(first.release, version_files(model, 2), NOW)


def write_unchecked(proposal: Proposal, folder: Path) -> Path:
    """Write a proposal as somebody might who keeps no rule; return the folder."""
    for path, content in proposal.files.items():
        if version_at(path) or channel_at(path):
            data = content if isinstance(content, bytes) else content.read_bytes()
            write_bytes(folder / "targets" / path, data)
    if proposal.base:
        write_bytes(folder / "base.json", proposal.base.to_bytes())
    proposal.write_signatures(folder)
    return folder


def _half_withdrawn(proposal: Proposal) -> Proposal:
    third = Proposal.following(proposal.release, {}, NOW, withdrawn=[("model", 1)])
    path = manifest_path("model", 1)
    third.release.signed.targets[path] = proposal.release.signed.targets[path]
    return third


def _newest_withdrawn(proposal: Proposal) -> Proposal:
    return Proposal.following(proposal.release, {}, NOW, withdrawn=[("model", 2)])


def _channel_removed(proposal: Proposal) -> Proposal:
    del proposal.release.signed.targets[channel_path("stable")]
    kept = {path: each for path, each in proposal.files.items() if "channels" not in path}
    return replace(proposal, files=kept)


def _file(path: str, content: bytes = b"x") -> Callable[[Proposal], Proposal]:
    def change(proposal: Proposal) -> Proposal:
        proposal.release.signed.targets[path] = TargetFile.from_data(path, content)
        return replace(proposal, files={**proposal.files, path: content})

    return change


def _without(path: str) -> Callable[[Proposal], Proposal]:
    def change(proposal: Proposal) -> Proposal:
        del proposal.release.signed.targets[path]
        return replace(proposal, files={k: v for k, v in proposal.files.items() if k != path})

    return change


def _skipped(proposal: Proposal) -> Proposal:
    proposal.release.signed.version += 1
    return proposal


def _delegating(proposal: Proposal) -> Proposal:
    proposal.release.signed.delegations = Delegations({}, {})
    return proposal


def _expired(proposal: Proposal) -> Proposal:
    proposal.release.signed.expires = NOW - timedelta(days=1)
    return proposal


def _long_lived(proposal: Proposal) -> Proposal:
    proposal.release.signed.expires += timedelta(days=365)
    return proposal


def _other_file(proposal: Proposal) -> Proposal:
    return replace(proposal, files={**proposal.files, manifest_path("model", 2): b"{}"})


def _weak_hash(proposal: Proposal) -> Proposal:
    proposal.release.signed.targets[channel_path("stable")].hashes = {"md5": "0" * 32}
    return proposal


def _second_manifest(proposal: Proposal) -> Proposal:
    manifest = proposal.manifest("model", 2).model_copy(update={"content_hash": "0" * 64})
    return _file(manifest_path("model", 2), manifest.to_json())(proposal)


def _other_versions_manifest(proposal: Proposal) -> Proposal:
    manifest = proposal.manifest("model", 2).model_copy(update={"version": 3})
    return _file(manifest_path("model", 2), manifest.to_json())(proposal)


BROKEN: dict[str, tuple[Callable[[Proposal], Proposal], str]] = {
    "skips a version of the metadata": (_skipped, "metadata version 3"),
    "delegates": (_delegating, "more than a release may"),
    "lives too long": (_long_lived, "no release may live longer than 180 days"),
    "has expired": (_expired, "which is past; make it anew"),
    "removes a version": (_without(model_path("model", 1)), "removes models/1"),
    "withdraws the newest version": (_newest_withdrawn, r"removes models/2.* until a later one"),
    "withdraws half a version": (_half_withdrawn, "withdraws model version 1 without models/1/man"),
    "removes a channel": (_channel_removed, "removes channels/stable.json"),
    "alters a version": (_file(manifest_path("model", 1)), "alters models/1/manifest"),
    "adds something else": (_file("../../etc/passwd"), "no part of a release"),
    "skips a number": (_file(model_path("model", 4)), r"adds model version 4; 2 is next"),
    "lacks a manifest": (_without(manifest_path("model", 2)), "without models/2/manifest"),
    "holds another file": (_other_file, "not the file of the proposal's metadata"),
    "names a file by MD5": (_weak_hash, "by its SHA-256"),
    "lies in its manifest": (_second_manifest, "do not have the content hash"),
    "has another version's manifest": (_other_versions_manifest, "is of model version 3"),
    "has a broken manifest": (
        _file(manifest_path("model", 2)),
        r"models/2/manifest\.json is wrong",
    ),
    "moves a channel to nowhere": (
        _file(channel_path("canary"), Channel(name="canary", version=9).to_json()),
        "names version 9, which is not released",
    ),
    "mistakes a channel": (
        _file(channel_path("canary"), Channel(name="stable", version=2).to_json()),
        "is of channel stable",
    ),
}
