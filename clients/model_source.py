"""What a device trains with: the model that a main server's channel "training" names, a generator.

An aggregator names a model by its hash. The device takes the version that the channel names, to
which aggregator and main server have both signed, and trains only if its parameters have that very
hash. A run names its impostor generator by the hash of its file, which may be that of any version
that is published.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedspk.errors import FedspkError
from fedspk.remote import RemoteVersions
from fedspk.rounds import RunConfig
from fedspk.run_model import load_shared, run_front_end
from fedspk.weights import FloatVector, WeightStore, content_hash
from gan.generator_file import check_front_end, load_generator
from gan.invented import file_hash

KEPT = 2
"""So many models stay: the present one, and the one before it while a round ends."""


class ModelNotReleasedError(FedspkError):
    """The aggregator names a model that the main server's channel does not."""


class ModelSource:
    """Verified models of a main server, kept in a folder of this device's own.

    Args:
        address: the server's base URL.
        folder: for its verified metadata and the models.
        root: the file of the root metadata to trust first.
        ca: certificates to trust in place of the system's.
    """

    def __init__(self, address: str, folder: Path, root: Path, ca: Path | None = None) -> None:
        self._address = address
        self._folder = Path(folder)
        self._root = root
        self._ca = ca
        self._store = WeightStore(self._folder / "models")

    def get(self, model: str, config: RunConfig) -> FloatVector:
        """Return a run's shared parameters (n,) float32 of this hash.

        Args:
            model: the hash that the aggregator names.
            config: the run.

        Raises:
            ModelNotReleasedError: the channel "training" names another model, or none.
            VersionsUnreachable: the server is away.
            VersionsRefused: what it shows is not to be trusted.
            FedspkError: a file cannot be read or written.
        """
        with self._alone():
            try:
                return self._store.get(model)
            except FedspkError:  # not there, or torn by a power cut
                self._store.remove(model)
                self._fetch(model, config)
                return self._store.get(model)

    def generator(self, config: RunConfig) -> Path:
        """Return the file of the impostor generator that a run names.

        Raises:
            GeneratorNotPublishedError: no version is that generator.
            VersionsUnreachable: the server is away.
            VersionsRefused: what it shows is not to be trusted, or the file is no generator.
            FedspkError: the generator is for another front end than the run's, or a file cannot be
                read or written.
        """
        path = self._folder / "generators" / f"{config.generator}.safetensors"
        with self._alone():
            if not path.exists() or file_hash(path) != config.generator:  # torn by a power cut
                versions = self._versions()
                versions.fetch("gan", versions.generator_of(config.generator), path)
            check_front_end(path, load_generator(path), run_front_end(config))
        return path

    def _fetch(self, model: str, config: RunConfig) -> None:
        versions = self._versions()
        channel = versions.channel("training")
        if channel is None:
            raise ModelNotReleasedError(
                f"{self._address}: no model is released for training yet; none is trained from."
            )
        path = self._folder / "fetched.safetensors"
        versions.fetch("model", channel.version, path)
        vector = load_shared(path, config)
        path.unlink()
        if content_hash(vector) != model:
            raise ModelNotReleasedError(
                f"{self._address}: version {channel.version} is released for training, which is "
                f"not the model {model[:16]}... that the aggregator names."
            )
        self._store.put(vector)
        self._store.sync([model])
        self._forget_old()

    def _versions(self) -> RemoteVersions:
        """Return the server's present state."""
        folder = self._folder / "trusted"
        versions = RemoteVersions(self._address, folder, self._trusted(), self._ca)
        versions.refresh()
        return versions

    def _forget_old(self) -> None:
        models = self._store.root.glob(f"*{self._store.suffix}")
        for old in sorted(models, key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            self._store.remove(old.stem)

    def _trusted(self) -> bytes:
        try:
            return self._root.read_bytes()
        except OSError as error:
            raise FedspkError(f"{self._root}: cannot be read ({error.strerror}).") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time into the folder."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
