"""Which model versions a device has: the one in use, and the one before it for an instant return.

The compiled models lie in `home/models/<SHA-256 of the file>.onnx`; the vault's sealed state names
them, so that nobody who can write the disk slips in another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.compiled import CompiledModel
from clients.vault import Vault
from fedspk.errors import FedspkError
from fedspk.files import write_bytes

if TYPE_CHECKING:
    from fedspk.release import Manifest


class NotCalibratedError(FedspkError):
    """A model has no threshold for a false-accept rate."""


@dataclass(frozen=True)
class Threshold:
    """Scores from `score` on accept; impostors reach it at the rate `false_accept` (0 to 1).

    The rate is unknown of a threshold that somebody chose.
    """

    score: float
    false_accept: float | None


@dataclass(frozen=True)
class Version:
    """A model version as the device keeps it.

    Args:
        model_hash: content hash of the model.
        digest: SHA-256 of the compiled model.
        samples: audio samples that the model hears, at 16 kHz.
        thresholds: its calibrated decision thresholds, by rising false-accept rate.
        number: under which a main server published it; None if it came from a file.
    """

    model_hash: str
    digest: str
    samples: int
    thresholds: tuple[Threshold, ...] = ()
    number: int | None = None

    def threshold(self, false_accept: float) -> Threshold:
        """Return the calibrated threshold with the greatest rate that is at most `false_accept`.

        Raises:
            NotCalibratedError: the model came without thresholds, or with none so strict.
        """
        rates = {each.false_accept: each for each in self.thresholds if each.false_accept}
        if not rates:
            raise NotCalibratedError(
                "this model came without calibrated thresholds, so that no score can be called "
                "an acceptance; give its --manifest when taking it into use, or a --threshold."
            )
        fitting = [rate for rate in rates if rate <= false_accept]
        if not fitting:
            raise NotCalibratedError(
                f"this model has no threshold for a false-accept rate of {false_accept:g} or "
                f"less; its strictest is for {min(rates):g}."
            )
        return rates[max(fitting)]


@dataclass(frozen=True)
class Versions:
    """The version in use and the previous one, if there is one."""

    current: Version
    previous: Version | None = None

    @property
    def kept(self) -> tuple[Version, ...]:
        """Both, or the only one."""
        return (self.current, self.previous) if self.previous else (self.current,)

    def unnumbered(self) -> Versions:
        """Return the same, as of models that no main server published."""
        previous = self.previous and replace(self.previous, number=None)
        return Versions(replace(self.current, number=None), previous)


def read_versions(vault: Vault) -> Versions:
    """Return the versions that the device has.

    Raises:
        VaultError: the state was altered.
    """
    content = json.loads(vault.read_state())
    previous = content["previous"]
    return Versions(_version(content["current"]), _version(previous) if previous else None)


def write_versions(vault: Vault, versions: Versions) -> None:
    """Make these the versions that the device has."""
    vault.write_state(json.dumps(asdict(versions)).encode())


def store_model(
    home: Path,
    model: CompiledModel,
    thresholds: Sequence[Threshold],
    number: int | None = None,
) -> Version:
    """Write a compiled model and return the version that it is; nothing uses it yet."""
    write_bytes(_path(home, model.digest), model.graph, 0o600)
    return Version(model.model_hash, model.digest, model.samples, tuple(thresholds), number)


def load_model(home: Path, version: Version) -> CompiledModel:
    """Return a stored model.

    Raises:
        FedspkError: the file is missing, or not the one that was stored.
    """
    path = _path(home, version.digest)
    try:
        model = CompiledModel(version.model_hash, version.samples, path.read_bytes())
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    if model.digest != version.digest:
        raise FedspkError(
            f"{path}: is not the model that was taken into use; take it into use again with "
            "`fedspk device update` or `fedspk device use-model`."
        )
    return model


def drop_models(home: Path, versions: Versions) -> None:
    """Delete the compiled models of all other versions."""
    kept = {version.digest for version in versions.kept}
    for path in (home / "models").glob("*.onnx"):
        if path.stem not in kept:
            path.unlink()


def _path(home: Path, digest: str) -> Path:
    return home / "models" / f"{digest}.onnx"


def thresholds_of(manifest: Manifest) -> tuple[Threshold, ...]:
    """Return the calibrated thresholds that a manifest states."""
    return tuple(Threshold(each.threshold, each.false_accept_rate) for each in manifest.thresholds)


def _version(content: dict[str, Any]) -> Version:
    thresholds = tuple(Threshold(**each) for each in content["thresholds"])
    return Version(**{**content, "thresholds": thresholds})
