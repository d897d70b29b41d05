"""Speaker encoders: networks that turn features (B, frames, bins) into one embedding each.

One file a family; `build_encoder` makes one by name and seed, `list_encoders` names them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fedspk.encoders.base import Encoder
from fedspk.encoders.resnet1d import ResNet1d
from fedspk.encoders.tdnn import TDNN
from fedspk.encoders.vggm import VGGM, PooledVGGM
from fedspk.errors import FedspkError

__all__ = ["Encoder", "build_encoder", "has_fixed_length", "list_encoders"]

# name -> (class, its arguments, whether it needs the number of frames, one line for --help)
_REGISTRY: dict[str, tuple[Callable[..., Encoder], dict[str, Any], bool, str]] = {
    "vggm": (VGGM, {}, True, "VGG-M as in the paper: 110 million weights in one layer"),
    "vggm-pooled": (PooledVGGM, {}, False, "VGG-M's convolutions and statistics pooling"),
    "vggm-small": (
        PooledVGGM,
        {"width": 0.25, "stem_channels": 16},
        False,
        "a quarter of VGG-M's width, pooled: quick on one CPU core",
    ),
    "tdnn": (TDNN, {}, False, "small x-vector network: the quickest, and best across sessions"),
    "resnet1d-18": (ResNet1d, {"blocks": (2, 2, 2, 2)}, False, "1-D ResNet, blocks 2-2-2-2"),
    "resnet1d-34": (ResNet1d, {"blocks": (3, 4, 6, 3)}, False, "1-D ResNet, blocks 3-4-6-3"),
}


def list_encoders() -> dict[str, str]:
    """Return the encoders' names, each with one line of explanation."""
    return {name: line for name, (_, _, _, line) in _REGISTRY.items()}


def has_fixed_length(name: str) -> bool:
    """Say whether an encoder is built for clips of one length only; unknown names are not."""
    return name in _REGISTRY and _REGISTRY[name][2]


def build_encoder(
    name: str, *, bins: int = 80, frames: int = 350, seed: int = 0, **params: Any
) -> Encoder:
    """Return encoder `name` with weights drawn from `seed`; `params` override the variant's own.

    `frames` matters only to encoders without pooling over time (vggm).

    >>> build_encoder("vggm-small").embedding_dim
    256

    Raises:
        FedspkError: the name or a parameter is unknown or wrong, or the features are too small.
    """
    if name not in _REGISTRY:
        raise FedspkError(f"encoder {name!r} is unknown; choose one of {', '.join(_REGISTRY)}.")
    make, defaults, needs_frames, _ = _REGISTRY[name]
    arguments: dict[str, Any] = {"bins": bins, **defaults, **params}
    if needs_frames:
        arguments["frames"] = frames
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return make(**arguments)
        except FedspkError:
            raise
        except Exception as error:  # what a layer raises at a strange width is up to it
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise FedspkError(f"encoder {name!r}: {reason}.") from error
