"""A generator as a file: safetensors whose metadata say what is in it and how it was made.

The weights are stored as float16, which halves the download; what is loaded is what was stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.generator_description import GeneratorDescription, weights_hash
from fedspk.model_file import GENERATOR, ModelFile
from fedspk.weights import save_model
from gan.network import Generator


def save_generator(
    path: Path, generator: Generator, *, corpus: str, speakers: int, origin: Mapping[str, Any]
) -> None:
    """Write a generator file.

    Args:
        path: ends in `.safetensors`.
        generator: its weights are rounded to float16.
        corpus: fingerprint of the speech that it was trained on.
        speakers: how many spoke it.
        origin: how it was made, see `GeneratorDescription`.

    Raises:
        FedspkError: the file cannot be written.
    """
    state = {name: value.cpu().half() for name, value in generator.state_dict().items()}
    description = GeneratorDescription(
        network=generator.config,
        front_end=generator.front_end,
        corpus=corpus,
        speakers=speakers,
        origin=dict(origin),
        weights=weights_hash({name: value.numpy() for name, value in state.items()}),
    )
    save_model(path, state, {GENERATOR: description.to_json()})


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
    """Return the generator that comes with fedspk; the README beside it tells how it was made."""
    return Path(str(resources.files("gan") / "pretrained" / "generator.safetensors"))


def _load(path: Path) -> tuple[Generator, dict[str, Any]]:
    with ModelFile.open(path) as file:
        description, weights = file.generator(), file.generator_weights()
    with torch.device("meta"):
        generator = Generator(description.network, description.front_end)
    state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in weights.items()}
    generator.load_state_dict(state, assign=True)
    origin = {
        "heard": [],
        **description.origin,
        "corpus": description.corpus,
        "speakers": description.speakers,
    }
    return generator.eval().requires_grad_(False), origin
