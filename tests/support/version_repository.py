"""A repository of versions with tiny models, the web server before it, and devices that follow."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Timestamp
from tuf.ngclient import Updater

from fedspk.engine import ModelDescription, save_described
from fedspk.features import FrontEndConfig
from fedspk.model import HeadConfig, build_model
from fedspk.proposals import RELEASE, Content, Proposal
from fedspk.release import (
    Channel,
    ChannelName,
    Manifest,
    channel_path,
    check_model_file,
    manifest_path,
    model_path,
)
from gan.invented import file_hash
from server import operations, upkeep
from server import repository as repository_module
from server.keyring import at_hand
from server.repository import Repository, Signers, now

TINY = {"width": 0.125, "stem_channels": 8, "embedding_dim": 16}
DESCRIPTION = ModelDescription("vggm-small", FrontEndConfig(frames=60, bins=40), TINY)


def make_model(path: Path, seed: int = 1) -> str:
    """Write a tiny model file and return its hash."""
    head = HeadConfig("aam", public=2)
    model = build_model("vggm-small", head, bins=40, frames=60, seed=seed, **TINY)
    return save_described(path, model, DESCRIPTION)


def evaluated(eer: float, corpus: str = "corpus-1") -> dict[str, Any]:
    """Return a draft of a manifest that says how good the model is."""
    return {
        "evaluation": {
            "eer": eer,
            "eer_interval": [eer - 1, eer + 1],
            "min_dcf": 0.3,
            "devices": 5,
            "corpus": corpus,
        }
    }


def write_draft(path: Path, eer: float = 5.0, **fields: Any) -> Path:
    """Write the draft of a manifest to a file and return its path."""
    path.write_text(json.dumps({**evaluated(eer), **fields}))
    return path


def keys_of(repository: Repository) -> Signers:
    """Return the keys in the repository's own folder."""
    return at_hand(repository.keys, [], None)


def keys_but(repository: Repository, owner: str) -> Signers:
    """Return the keys in the repository's own folder but for one owner's."""
    away = {each.name.split(".")[1] for each in repository.keys.glob(f"{owner}.*")}
    return {keyid: each for keyid, each in keys_of(repository).items() if keyid[:8] not in away}


def publish(
    repository: Repository,
    model: Path,
    eer: float = 5.0,
    channel: ChannelName | None = "stable",
) -> None:
    """Publish a model as the next version, for a channel."""
    with repository.changing() as state:
        made = operations.publication(repository, state, model, evaluated(eer), channel)
        operations.publish(repository, state, made, keys_of(repository), "publish")


def publish_generator(
    repository: Repository, generator: Path, signers: Signers | None = None
) -> str:
    """Publish an impostor generator as the next version and return its file's hash."""
    with repository.changing() as state:
        made = operations.publication(repository, state, generator, {"kind": "gan"}, None)
        operations.publish(repository, state, made, signers or keys_of(repository), "publish")
    return file_hash(generator)


def promote(repository: Repository, version: int) -> None:
    """Let the channel stable name a version."""
    with repository.changing() as state:
        made = operations.promotion(repository, state, version, "stable")
        operations.publish(repository, state, made, keys_of(repository), "promote")


def roll_back(repository: Repository, to: int) -> None:
    """Publish an old version again."""
    with repository.changing() as state:
        made = operations.rollback(repository, state, to)
        operations.publish(repository, state, made, keys_of(repository), "rollback")


def root_of(repository: Repository) -> bytes:
    """Return the first root, which devices are given."""
    return (repository.metadata / "1.root.json").read_bytes()


def expire(repository: Repository, patch: pytest.MonkeyPatch) -> None:
    """Publish a timestamp that is no longer valid."""
    lifetimes = {**repository_module.LIFETIMES, Timestamp.type: timedelta(seconds=-1)}
    patch.setattr(repository_module, "LIFETIMES", lifetimes)
    upkeep.renew(repository, keys_of(repository))


def publish_unchecked(repository: Repository, files: Mapping[str, Content]) -> None:
    """Publish targets as they are, as only the owner of every key could."""
    release_unchecked(repository, keys_of(repository), files)


def release_unchecked(
    repository: Repository, signers: Signers, files: Mapping[str, Content]
) -> None:
    """Publish a release of these targets that is signed by those keys alone."""
    with repository.changing() as state:
        proposal = Proposal.following(state.release, files, now())
        listed = state.targets.signed.get_delegated_role(RELEASE).keyids
        proposal.sign(signers[keyid] for keyid in listed if keyid in signers)
        repository.commit(state, signers, "attack", files=files, release=proposal.release)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder's files on loopback and yield the address."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Device:
    """A device that keeps its trusted metadata between updates, as the real one must.

    `address` is that of the repository's folder `public`.
    """

    folder: Path
    address: str
    root: bytes

    def update(self) -> Manifest:
        """Fetch what channel stable names, check it, and return its manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        updater = Updater(
            str(self.folder),
            f"{self.address}/metadata/",
            str(self.folder),
            f"{self.address}/targets/",
            bootstrap=self.root,
        )
        channel = Channel.from_json(self._fetch(updater, channel_path("stable")).read_bytes())
        version = channel.version
        manifest = Manifest.from_json(
            self._fetch(updater, manifest_path("model", version)).read_bytes()
        )
        check_model_file(self._fetch(updater, model_path("model", version)), manifest)
        return manifest

    def _fetch(self, updater: Updater, target: str) -> Path:
        info = updater.get_targetinfo(target)
        assert info is not None, target
        return Path(updater.find_cached_target(info) or updater.download_target(info))
