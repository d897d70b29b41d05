"""A model file looked into without building its model: description, shapes, types, content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from fedspk.engine import DESCRIPTION, ENCODER_PREFIX, ModelDescription, described_hash
from fedspk.errors import FedspkError
from fedspk.generator_description import GeneratorDescription, weights_hash
from fedspk.release import MOST_GENERATOR

GENERATOR = "fedspk.generator"
"""Where the metadata of an impostor generator's file hold its description."""

_HEAD_PREFIX = "head."
_HALF = "F16"  # of a generator's weights
_TYPE_NAMES = {torch.float32: "F32", torch.int64: "I64"}


class ModelFile:
    """An open safetensors file; tensors are read one by one, and only to be hashed.

    Raises (all methods):
        FedspkError: the file is missing or broken, or is not what is asked for.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self._path = path
        self._file = file
        self._names: list[str] = sorted(file.keys())
        self._metadata: dict[str, str] = dict(file.metadata() or {})

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        """Open a file whose header fits its length."""
        path = Path(path)
        try:
            with safe_open(path, framework="np") as file:
                yield cls(path, file)
        except FileNotFoundError as error:
            raise FedspkError(f"{path}: there is no such model file.") from error
        except (SafetensorError, OSError) as error:
            raise FedspkError(
                f"{path}: is not a whole safetensors model file ({error})."
            ) from error

    def description(self) -> ModelDescription:
        """Return what the file says that it holds."""
        if DESCRIPTION not in self._metadata:
            raise FedspkError(
                f"{self._path}: is no speaker model: it does not say which encoder and front end "
                "it is for; use a model file written by fedspk."
            )
        try:
            return ModelDescription.from_json(self._metadata[DESCRIPTION])
        except FedspkError as error:
            raise FedspkError(f"{self._path}: {error}") from error

    def check_encoder(self) -> None:
        """Accept the tensors that the description asks for, in shape and type, and a head's."""
        description = self.description()
        try:
            names = _tensors(description.to_json())
        except FedspkError as error:
            raise FedspkError(f"{self._path}: {error}") from error
        for name, (shape, kind) in names.items():
            self._check_tensor(name, list(shape), kind)
        for name in self._names:
            if name not in names and not name.startswith(_HEAD_PREFIX):
                raise FedspkError(
                    f"{self._path}: holds {name!r}, which encoder {description.encoder} has not."
                )

    def model_hash(self) -> str:
        """Return what `fedspk.engine.model_hash` says of the described model."""
        digest = hashlib.sha256()
        for name in self._names:
            is_encoder = name.startswith(ENCODER_PREFIX)
            if not is_encoder and self._file.get_slice(name).get_dtype() != "F32":
                continue
            weights = self._file.get_tensor(name)
            self._check_finite(name, weights)  # a head's, too: devices train on from it
            if is_encoder:
                digest.update(np.ascontiguousarray(weights, dtype="<f4").data)
        return described_hash(self.description(), digest.hexdigest())

    def generator(self) -> GeneratorDescription:
        """Return what the file of an impostor generator says that it holds."""
        length = self._path.stat().st_size
        if length > MOST_GENERATOR:
            raise FedspkError(
                f"{self._path}: is {length} bytes long, no impostor generator is longer than "
                f"{MOST_GENERATOR}; use a file that `fedspk gan train` wrote."
            )
        if GENERATOR not in self._metadata:
            raise FedspkError(
                f"{self._path}: holds no impostor generator; use a file that `fedspk gan train` "
                "wrote."
            )
        try:
            return GeneratorDescription.from_json(self._metadata[GENERATOR])
        except FedspkError as error:
            raise FedspkError(
                f"{self._path}: is damaged or of another fedspk ({error}); "
                "fetch or train the generator again."
            ) from error

    def generator_weights(self) -> dict[str, npt.NDArray[np.float16]]:
        """Return the weights of an impostor generator, which are what its description asks for.

        No memory is taken for what a description says, but for what the file holds.
        """
        description = self.generator()
        wanted = description.network.weights(description.front_end.bins)
        for name, shape in wanted.items():
            self._check_tensor(name, list(shape), _HALF)
        for name in self._names:
            if name not in wanted:
                raise FedspkError(f"{self._path}: holds {name!r}, which no generator has.")
        weights = {name: self._file.get_tensor(name) for name in self._names}
        for name, values in weights.items():
            self._check_finite(name, values)
        if description.weights not in (None, weights_hash(weights)):
            raise FedspkError(
                f"{self._path}: its weights are not those that were written into it; "
                "it is damaged, fetch or train the generator again."
            )
        return weights

    def file_hash(self) -> str:
        """Return the SHA-256 of the file's bytes, in hex."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _check_finite(self, name: str, values: npt.NDArray[Any]) -> None:
        if not np.isfinite(values).all():
            raise FedspkError(f"{self._path}: weight {name!r} is not finite.")

    def _check_tensor(self, name: str, shape: list[int], kind: str) -> None:
        if name not in self._names:
            raise FedspkError(f"{self._path}: lacks the weight {name!r}.")
        found = self._file.get_slice(name)
        if found.get_shape() != shape:
            raise FedspkError(
                f"{self._path}: weight {name!r} has shape {tuple(found.get_shape())}, "
                f"its description needs {tuple(shape)}."
            )
        if found.get_dtype() != kind:
            raise FedspkError(
                f"{self._path}: weight {name!r} has type {found.get_dtype()}, "
                f"its description needs {kind}."
            )


@lru_cache(maxsize=8)
def _tensors(description: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the names of a described encoder's tensors with shapes and types, without memory."""
    with torch.device("meta"):
        wanted = ModelDescription.from_json(description).build().state_dict()
    return {
        ENCODER_PREFIX + name: (tuple(like.shape), _TYPE_NAMES[like.dtype])
        for name, like in wanted.items()
    }
