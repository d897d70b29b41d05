"""Drawing invented voices: lazily, batch by batch, bit for bit again from the same seed.

>>> from gan.generator_file import load_generator, packaged_generator
>>> voices = InventedVoices(load_generator(packaged_generator()), seed=1)
>>> voices.patches([0, 0, 7], [0, 1, 0]).shape  # two takes of speaker 0, one of speaker 7
torch.Size([3, 350, 80])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedspk.errors import FedspkError
from fedspk.parallel import one_torch_thread
from gan.codes import patch_codes
from gan.network import Generator


class InventedVoices:
    """All the voices of one generator under one seed: speaker and take number name a patch.

    A patch depends on the generator, the seed, its speaker and its take alone, not on what it is
    drawn together with: patches are computed one by one, on one thread.
    """

    def __init__(self, generator: Generator, seed: int) -> None:
        self.generator = generator.eval()
        self.seed = seed

    @torch.inference_mode()
    def patches(self, speakers: Sequence[int], takes: Sequence[int]) -> Tensor:
        """Return patches (len(speakers), frames, bins) float32, wherever the generator computes."""
        front_end = self.generator.front_end
        device = self.generator.output.weight.device
        made = torch.empty(len(speakers), front_end.frames, front_end.bins)
        with one_torch_thread():
            for row, (speaker, take) in enumerate(zip(speakers, takes, strict=True)):
                codes = patch_codes(
                    self.generator.config, front_end.frames, self.seed, int(speaker), int(take)
                )
                made[row] = self.generator(codes.to(device))[0].cpu()
        return made

    def batches(
        self, count: int, speakers: int, batch_size: int = 32
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield `count` patches of `speakers` voices and their speakers' numbers, lazily.

        Speakers take turns, so that the first patches are of as many voices as possible.

        Raises:
            FedspkError: a number is not positive.
        """
        if min(count, speakers, batch_size) < 1:
            raise FedspkError(
                f"sampling needs positive numbers, got {count} patches of {speakers} speakers."
            )
        for start in range(0, count, batch_size):
            numbers = range(start, min(count, start + batch_size))
            voices = [number % speakers for number in numbers]
            yield self.patches(voices, [number // speakers for number in numbers]), voices
