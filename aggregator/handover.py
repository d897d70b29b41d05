"""A run's models handed over to the main server, whose channels devices verify.

Every round's model becomes an intermediate version that the channel "training" names, before a
device is asked to use it: devices train only from what that channel names. The run's best model
becomes a whole version of the channel that the run's configuration says. Intermediate versions that
no channel names are withdrawn when newer ones have come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aggregator.facts import Budget, training_facts
from aggregator.publisher import MainServer
from aggregator.record import RoundProgress, RoundRecord
from fedspk.errors import FedspkError
from fedspk.proposals import Content, Proposal, latest_version, versions
from fedspk.release import (
    CHANNELS,
    Channel,
    ChannelName,
    Kind,
    channel_path,
    draft_manifest,
    manifest_path,
    model_path,
    replaced,
)
from fedspk.remote import RemoteVersions
from fedspk.rounds import RunConfig
from fedspk.run_model import require_whole_encoder, save_shared, starting_vector
from fedspk.weights import WeightStore

KEPT_ROUNDS = 5
"""So many intermediate versions stay: the latest, for devices that are behind."""

FINAL_CHANNELS: tuple[ChannelName, ...] = ("training", "canary")
"""Channels to which a run may hand its best model; "stable" is for operators."""

Evaluate = Callable[[Path], Mapping[str, Any]]
"""Given a model file, what trials say of it: fields of its manifest."""


class Handover:
    """Hands the models of one run over.

    Args:
        server: the main server.
        config: the run.
        store: the run's vectors.
        channel: which channel is to name the run's best model.
        evaluate: evaluates that model.

    Raises:
        FedspkError: the channel is not for runs, or the run's vectors are no whole models.
    """

    def __init__(
        self,
        server: MainServer,
        config: RunConfig,
        store: WeightStore,
        channel: str = "training",
        evaluate: Evaluate | None = None,
    ) -> None:
        found = next((name for name in FINAL_CHANNELS if name == channel), None)
        if found is None:
            raise FedspkError(
                f"server-channel is {channel!r}; a run publishes to {' or '.join(FINAL_CHANNELS)}."
            )
        require_whole_encoder(config)
        self._server = server
        self._config = config
        self._store = store
        self._channel: ChannelName = found
        self._evaluate = evaluate
        self._intermediate: dict[int, bool] = {}

    def start(self, channel: ChannelName) -> str:
        """Store the model that a channel names, as this run's first, and return its vector's hash.

        Raises:
            FedspkError: the channel was never set, the server is away or shows what is not to be
                trusted, or the model is of another network than the run's.
        """
        found = self._server.versions.channel(channel)
        if found is None:
            raise FedspkError(f"init is {channel!r}, but that channel names no version yet.")
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            self._server.versions.fetch("model", found.version, path)
            model = self._store.put(starting_vector(path, self._config))
        self._store.sync([model])
        return model

    def fetch_generator(self, path: Path) -> None:
        """Fetch the impostor generator that the run names, without which no device can train.

        Raises:
            GeneratorNotPublishedError: no version is that generator.
            FedspkError: the server is away or shows what is not to be trusted, or the file cannot
                be written.
        """
        versions = self._server.versions
        versions.fetch("gan", versions.generator_of(self._config.generator), path)

    def offer(self, model: str, record: RoundRecord | RoundProgress, budget: Budget) -> None:
        """Let the channel "training" name a model, before devices are asked to use it.

        Nothing is published if it does; another model that somebody let it name gives way.

        Args:
            model: its vector's hash.
            record: of the round that made it.
            budget: spent until then.

        Raises:
            FedspkError: the server refuses it or stays away.
        """
        facts = training_facts(self._config, record, budget) | {"intermediate": True}
        with TemporaryDirectory() as folder:
            path = self._saved(model, folder)
            self._server.publish(lambda found: self._proposal(found, path, "training", facts))

    def finish(self, model: str, record: RoundRecord, budget: Budget) -> None:
        """Publish the run's best model as a whole version; the arguments are those of `offer`.

        Raises:
            FedspkError: the server refuses it or stays away.
        """
        facts = training_facts(self._config, record, budget)
        with TemporaryDirectory() as folder:
            path = self._saved(model, folder)
            if self._evaluate is not None:
                facts |= self._evaluate(path)
            self._server.publish(lambda found: self._proposal(found, path, self._channel, facts))

    def _saved(self, model: str, folder: str) -> Path:
        path = Path(folder) / "model.safetensors"
        save_shared(path, self._store.get(model), self._config)
        return path

    def _proposal(
        self, found: RemoteVersions, model: Path, name: ChannelName, facts: Mapping[str, Any]
    ) -> Proposal | None:
        """Return the proposal of a version that a channel is to name; None if it does already."""
        base, present = found.release(), found.channel(name)
        is_intermediate = bool(facts.get("intermediate"))
        if present and self._is_named(found, present.version, model, is_intermediate):
            return None
        now = datetime.now(UTC).replace(microsecond=0)
        version = latest_version(base.signed if base else None, "model") + 1
        defaults: dict[str, Any] = {"created": now.isoformat()}
        before = replaced(name, found.channel)
        if before:
            parent = found.manifest("model", before.version)
            defaults["parent"] = {"version": parent.version, "content_hash": parent.content_hash}
        manifest = draft_manifest(facts, model, version, **defaults)
        files: dict[str, Content] = {
            model_path("model", version): model,
            manifest_path("model", version): manifest.to_json(),
            channel_path(name): Channel.naming(name, version, present).to_json(),
        }
        outdated = self._outdated(found, name, is_intermediate)
        return Proposal.following(base, files, now, outdated)

    def _is_named(
        self, found: RemoteVersions, version: int, model: Path, is_intermediate: bool
    ) -> bool:
        """Say whether a version is this file; a round may also be named by a whole version."""
        base = found.release()
        assert base is not None
        with model.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if base.signed.targets[model_path("model", version)].hashes.get("sha256") != digest:
            return False
        return is_intermediate or not self._is_intermediate(found, version)

    def _outdated(
        self, found: RemoteVersions, moved: ChannelName, adds_one: bool
    ) -> list[tuple[Kind, int]]:
        """Return the intermediate versions to withdraw when the channel `moved` names a new one."""
        base = found.release()
        if base is None:
            return []
        channels = [found.channel(name) for name in CHANNELS if name != moved]
        named = {channel.version for channel in channels if channel}
        known = versions(base.signed, "model")
        rounds = [number for number in known if self._is_intermediate(found, number)]
        old = rounds[: -(KEPT_ROUNDS - adds_one)]
        return [("model", number) for number in old if number not in named]

    def _is_intermediate(self, found: RemoteVersions, version: int) -> bool:
        if version not in self._intermediate:
            self._intermediate[version] = found.manifest("model", version).intermediate
        return self._intermediate[version]
