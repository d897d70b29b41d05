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
from fedspk.files import write_bytes
from fedspk.store import ArrayStore, array_hash

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
    return array_hash(np.ascontiguousarray(content, dtype="<f4"))


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


class WeightStore(ArrayStore[np.float32]):
    """Weight vectors (n,) float32 by content hash."""

    dtype = np.dtype("<f4")
    suffix = ".f32"
    what = "a weight vector"
