"""Weights as one flat float32 vector, as a safetensors file, and by content hash.

The vector's order is the order of the names given (see `SpeakerModel.shared_parameters`), each
tensor in row-major order. Its hash is SHA-256 over its little-endian float32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedspk.errors import FedspkError
from fedspk.files import atomic_write, sync, write_bytes

FloatVector: TypeAlias = npt.NDArray[np.float32]


def flatten(state: Mapping[str, Tensor], names: Iterable[str]) -> FloatVector:
    """Return the named tensors as one vector (n,) float32, in the order of `names`."""
    tensors = [state[name].detach() for name in names]
    vector = np.empty(sum(tensor.numel() for tensor in tensors), dtype=np.float32)
    start = 0
    for tensor in tensors:
        stop = start + tensor.numel()
        torch.from_numpy(vector[start:stop]).view(tensor.shape).copy_(tensor)
        start = stop
    return vector


def unflatten(
    vector: FloatVector, template: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """Return copies of the parts of `vector` under `names`, shaped and typed as in `template`.

    Raises:
        FedspkError: the vector's length is not the sum of the named tensors' sizes.
    """
    names = list(names)
    expected = sum(template[name].numel() for name in names)
    if vector.shape != (expected,):
        raise FedspkError(
            f"a weight vector of {vector.size} numbers does not fit a model of {expected}; "
            "it was made with another encoder or head."
        )
    parts: dict[str, Tensor] = {}
    start = 0
    for name in names:
        like = template[name]
        part = np.array(vector[start : start + like.numel()], dtype=np.float32)
        parts[name] = torch.from_numpy(part).view(like.shape).to(like.device, like.dtype)
        start += like.numel()
    return parts


def content_hash(content: FloatVector | bytes) -> str:
    """Return the SHA-256 of bytes, or of a vector's little-endian float32 bytes, in hex."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(content, dtype="<f4").data).hexdigest()


def save_model(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and string metadata to a safetensors file, atomically.

    Raises:
        FedspkError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_bytes(Path(path), safetensors.torch.save(tensors, dict(metadata)))


def load_model(
    path: Path, template: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a safetensors file.

    Raises:
        FedspkError: the file is missing or broken, or, given a `template` (usually a
            `state_dict`), lacks one of its tensors or holds it in another shape.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise FedspkError(f"{path}: there is no such model file.") from error
    except (SafetensorError, OSError) as error:
        raise FedspkError(f"{path}: is not a whole safetensors model file ({error}).") from error
    for name, like in (template or {}).items():
        if name not in state or state[name].shape != like.shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise FedspkError(
                f"{path}: holds {found} for {name!r} where this model needs {tuple(like.shape)}; "
                "use the encoder and head it was made with."
            )
    return state, metadata


class WeightStore:
    """A folder of weight vectors by content hash, written once and mapped read-only by all workers.

    A vector torn by a power cut fails its hash and can be put again; `sync` the ones that cannot be
    made again.

    Raises (all methods):
        FedspkError: a vector is missing or damaged, or cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._verified: set[str] = set()

    def path(self, digest: str) -> Path:
        """Return where the vector of this hash lies."""
        if len(digest) != 64 or not all(character in "0123456789abcdef" for character in digest):
            raise FedspkError(f"{digest!r} is not a content hash (64 hex digits).")
        return self.root / f"{digest}.f32"

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()

    def put(self, vector: FloatVector) -> str:
        """Store a non-empty vector (n,) float32 and return its hash."""
        vector = np.ascontiguousarray(vector, dtype="<f4")
        if vector.ndim != 1 or vector.size == 0:
            raise FedspkError("a weight vector must be flat and not empty.")
        digest = content_hash(vector)
        path = self.path(digest)
        if not self._holds(path, digest):
            with atomic_write(path, durable=False) as file:
                file.write(vector.data)
            self._verified.add(digest)
        return digest

    def get(self, digest: str) -> FloatVector:
        """Return the vector of this hash, mapped read-only; its hash is checked once a process."""
        path = self.path(digest)
        try:
            vector: FloatVector = np.memmap(path, dtype="<f4", mode="r")
        except (OSError, ValueError) as error:
            raise FedspkError(f"{path}: weights are missing or empty.") from error
        if digest not in self._verified:
            if content_hash(vector) != digest:
                raise FedspkError(f"{path}: weights are damaged; delete the file and run again.")
            self._verified.add(digest)
        return vector

    def sync(self, digests: Iterable[str]) -> None:
        """Wait until these vectors are on the disk."""
        paths = [self.path(digest) for digest in digests]
        try:
            for path in paths:
                sync(path)
            if paths:
                sync(self.root)
        except OSError as error:
            raise FedspkError(f"{self.root}: cannot be written ({error.strerror}).") from error

    def remove(self, digest: str) -> None:
        """Delete the vector of this hash if it is there; maps already open stay valid."""
        self.path(digest).unlink(missing_ok=True)
        self._verified.discard(digest)

    def _holds(self, path: Path, digest: str) -> bool:
        if not path.exists():
            return False
        try:
            self.get(digest)
        except FedspkError:
            return False
        return True
