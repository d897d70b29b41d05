"""What one device holds: its owner's utterances and its impostors, as rows of a feature table.

An utterance is a tuple of rows, one for each of its variants (sessions, crops); training draws
one of them at a time. The description is a small JSON file; the features stay in the table's
packs, which all processes map read-only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json

if TYPE_CHECKING:
    from fedspk.feature_table import FeatureTable

Variants: TypeAlias = tuple[int, ...]

_FORMAT = 1


@dataclass(frozen=True)
class DeviceDataset:
    """One device's data.

    Args:
        device: its name, unique in the fleet.
        index: its number from 0, which chooses its codeword.
        speaker: the owner.
        features: the saved `FeatureTable`.
        folder: where the device keeps what is private to it.
        owner_train, owner_validation: the owner's utterances, each by its variants' rows.
        impostors, impostor_labels: other people's, and which public speaker each is of.
        validation_impostors, validation_impostor_labels: the same for validation.
        generator: file of the impostor generator, for runs with invented impostors.

    Raises:
        FedspkError: there is no training utterance, or impostors and labels differ in number.
    """

    device: str
    index: int
    speaker: str
    features: Path
    folder: Path
    owner_train: tuple[Variants, ...]
    owner_validation: tuple[Variants, ...] = ()
    impostors: tuple[Variants, ...] = ()
    impostor_labels: tuple[int, ...] = ()
    validation_impostors: tuple[Variants, ...] = ()
    validation_impostor_labels: tuple[int, ...] = ()
    generator: Path | None = None

    def __post_init__(self) -> None:
        if not self.owner_train:
            raise FedspkError(f"{self.device}: owner_train is empty; a device needs speech.")
        for name in ("impostors", "validation_impostors"):
            label_name = f"{name.removesuffix('s')}_labels"
            if len(getattr(self, name)) != len(getattr(self, label_name)):
                raise FedspkError(f"{self.device}: {name} and {label_name} differ in length.")
        for name in _VARIANT_FIELDS:
            if not all(getattr(self, name)):
                raise FedspkError(f"{self.device}: an utterance of {name} has no row.")

    @property
    def table(self) -> FeatureTable:
        """The features, mapped read-only."""
        return _open_table(self.features)

    def save(self, path: Path) -> None:
        """Write the description; the folder of private things goes by the file's name."""
        content = asdict(self)
        content["features"] = str(self.features)
        content["generator"] = self.generator and str(self.generator)
        del content["folder"]
        write_json(path, {"format": _FORMAT, **content})

    @classmethod
    def open(cls, path: Path) -> DeviceDataset:
        """Read a description; relative files are relative to the description.

        Raises:
            FedspkError: the file is missing, broken or of another format.
        """
        path = Path(path)
        try:
            modified = path.stat().st_mtime_ns
        except OSError as error:
            raise FedspkError(f"{path}: there is no such device description.") from error
        return _open(path, modified)


def description_path(folder: Path, index: int) -> Path:
    """Return where the description of a simulated device lies."""
    return folder / f"device-{index:04d}.json"


_VARIANT_FIELDS = ("owner_train", "owner_validation", "impostors", "validation_impostors")


@lru_cache(maxsize=64)
def _open(path: Path, _modified: int) -> DeviceDataset:
    content = read_json(path)
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise FedspkError(f"{path}: is not a device description of format {_FORMAT}.")
    names = {field.name for field in fields(DeviceDataset)} - {"folder"}
    if set(content) != names:
        odd = ", ".join(sorted(set(content) ^ names))
        raise FedspkError(f"{path}: fields are missing or unknown: {odd}.")
    try:
        values = {name: _tuple(name, value) for name, value in content.items()}
    except TypeError as error:
        raise FedspkError(f"{path}: a list of rows is not a list of lists.") from error
    values["features"] = path.parent / content["features"]
    if content["generator"] is not None:
        values["generator"] = path.parent / content["generator"]
    return DeviceDataset(folder=path.with_suffix(""), **values)


def _tuple(name: str, value: Any) -> Any:
    if name in _VARIANT_FIELDS:
        return tuple(tuple(variants) for variants in value)
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=8)
def _open_table(path: Path) -> FeatureTable:
    from fedspk.feature_table import FeatureTable

    return FeatureTable.open(path)
