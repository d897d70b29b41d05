"""A generator as a file: safetensors whose metadata say what is in it and how it was made.

The weights are stored as float16, which halves the download; what is loaded is what was stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.model_file import GENERATOR
from fedspk.weights import load_model, save_model
from gan.network import Generator, NetworkConfig

_FORMAT = 1
_MOST_BYTES = 5 * 1024 * 1024


def save_generator(
    path: Path, generator: Generator, *, corpus: str, speakers: int, origin: Mapping[str, Any]
) -> None:
    """Write a generator file.

    Args:
        path: ends in `.safetensors`.
        generator: its weights are rounded to float16.
        corpus: fingerprint of the speech that it was trained on.
        speakers: how many spoke it.
        origin: how it was made, as JSON values: training, versions; `heard` holds the marks
            (`fedspk.corpora.Utterance.mark`) of the utterances that it was trained on.

    Raises:
        FedspkError: the file cannot be written.
    """
    description = {
        "format": _FORMAT,
        "network": asdict(generator.config),
        "front_end": asdict(generator.front_end),
        "corpus": corpus,
        "speakers": speakers,
        "origin": dict(origin),
    }
    weights = {name: value.cpu().half() for name, value in generator.state_dict().items()}
    save_model(path, weights, {GENERATOR: json.dumps(description, sort_keys=True)})


def load_generator(path: Path) -> Generator:
    """Return the generator of a file, in evaluation mode.

    Raises:
        FedspkError: the file is missing, larger than any generator, damaged, or holds something
            else.
    """
    return _load(path)[0]


def generator_origin(path: Path) -> dict[str, Any]:
    """Return how the generator of a file was made.

    Raises:
        FedspkError: see `load_generator`.
    """
    return _load(path)[1]


def check_front_end(path: Path, generator: Generator, wanted: FrontEndConfig) -> None:
    """Accept a generator whose patches are what an encoder hears.

    Raises:
        FedspkError: its front end is another.
    """
    if generator.front_end != wanted:
        raise FedspkError(
            f"{path}: makes patches of {generator.front_end}, the encoder hears {wanted}; "
            "use a generator trained with the encoder's front end."
        )


def packaged_generator() -> Path:
    """Return the generator that comes with fedspk; `fedspk gan show` tells how it was made."""
    return Path(str(resources.files("gan") / "pretrained" / "generator.safetensors"))


def _load(path: Path) -> tuple[Generator, dict[str, Any]]:
    path = Path(path)
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise FedspkError(
            f"{path}: is longer than {_MOST_BYTES} bytes, so it is no impostor generator; "
            "use a file that `fedspk gan train` wrote."
        )
    state, metadata = load_model(path)
    if GENERATOR not in metadata:
        raise FedspkError(
            f"{path}: holds no impostor generator; use a file that `fedspk gan train` wrote."
        )
    try:
        description = json.loads(metadata[GENERATOR])
        if description["format"] != _FORMAT:
            raise ValueError(f"format {description['format']}")
        sizes = description["network"]
        config = NetworkConfig(**{**sizes, "channels": tuple(sizes["channels"])})
        front_end = FrontEndConfig(**description["front_end"])
        with torch.device("meta"):
            generator = Generator(config, front_end)
        weights = {name: value.float() for name, value in state.items()}
        if not all(bool(value.isfinite().all()) for value in weights.values()):
            raise ValueError("weights that are no numbers")
        generator.load_state_dict(weights, assign=True)
        origin = {
            "heard": [],
            **description["origin"],
            **{n: description[n] for n in ("corpus", "speakers")},
        }
    except (ValueError, KeyError, TypeError, RuntimeError, FedspkError) as error:
        raise FedspkError(
            f"{path}: is damaged or of another fedspk ({str(error).splitlines()[0]}); "
            "fetch or train the generator again."
        ) from error
    return generator.eval().requires_grad_(False), origin
