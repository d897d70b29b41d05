"""An impostor generator of a few hundred weights: untrained, but whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fedspk.features import FrontEndConfig
from fedspk.generator_description import NetworkConfig
from gan.generator_file import save_generator
from gan.network import Generator

TINY_FRONT_END = FrontEndConfig(frames=40, bins=8)
TINY_NETWORK = NetworkConfig(
    speaker_dim=4, session_dim=2, content_dim=3, style_dim=6, channels=(8, 6)
)


def make_generator(
    path: Path,
    seed: int = 1,
    front_end: FrontEndConfig = TINY_FRONT_END,
    heard: Sequence[str] = (),
) -> Path:
    """Write a generator file with weights drawn from `seed`; return its path.

    `heard` are the marks of the utterances that it pretends to have been trained on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = Generator(TINY_NETWORK, front_end)
    save_generator(path, generator, corpus="fingerprint", speakers=3, origin={"heard": list(heard)})
    return path
