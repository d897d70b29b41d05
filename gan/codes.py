"""Random codes: in bulk for training, and patch by patch, each from its own seed, for sampling."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedspk.generator_description import NetworkConfig
from fedspk.seeds import numpy_generator
from gan.network import Codes


def random_codes(
    config: NetworkConfig, frames: int, speakers: Tensor, generator: torch.Generator
) -> Codes:
    """Draw the takes of a batch whose speaker codes (B, speaker_dim) are given."""
    count, steps = len(speakers), config.steps(frames)
    return Codes(
        speaker=speakers,
        session=torch.randn(count, config.session_dim, generator=generator),
        content=torch.randn(count, config.content_dim, steps, generator=generator),
        noise=tuple(
            torch.randn(count, 1, steps << layer, generator=generator)
            for layer in range(len(config.channels))
        ),
    )


def patch_codes(config: NetworkConfig, frames: int, seed: int, speaker: int, take: int) -> Codes:
    """Return the codes (a batch of one) of one take of one invented speaker.

    They depend on the arguments alone; takes of one speaker share the speaker code.
    """
    voice = numpy_generator(seed, "speaker", speaker)
    utterance = numpy_generator(seed, "speaker", speaker, "take", take)
    steps = config.steps(frames)
    return Codes(
        speaker=_normal(voice, 1, config.speaker_dim),
        session=_normal(utterance, 1, config.session_dim),
        content=_normal(utterance, 1, config.content_dim, steps),
        noise=tuple(
            _normal(utterance, 1, 1, steps << layer) for layer in range(len(config.channels))
        ),
    )


def _normal(generator: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
