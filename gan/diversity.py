"""Whether made voices are as varied as real ones, and what people are told when they are not.

Voices and takes vary apart from one another, so they are measured apart: takes that differ would
hide voices that are all the same one, and the other way round. The analysis of variance (R. A.
Fisher, "Statistical methods for research workers", 1925) of voice summaries does it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum

import torch
from torch import Tensor

from fedspk.seeds import numpy_generator
from gan.codes import random_codes
from gan.moments import voice_summary
from gan.network import Codes, Generator
from gan.patches import SpeakerPatches

JUDGED_FROM = 300
"""Voices are judged from this step on; a sound training has passed every threshold by then."""

_LEAST_DIVERSITY = 0.4
_LEAST_IDENTITY = 0.2

_VOICES, _TAKES = 16, 8
_REAL_VOICES, _REAL_TAKES = 128, 4
_LEAST_REAL = 0.1  # of the takes' spread: with few speakers, what is left of theirs may be 0


class Fault(Enum):
    """What can be wrong with made voices; the value is what people are told."""

    VOICES_ALIKE = (
        "made voices differ by {diversity:.0%} of what real ones do: the generator is collapsing"
    )
    TAKES_ALIKE = (
        "takes of one made voice differ by {take_diversity:.0%} of what real ones do: the "
        "generator is collapsing"
    )
    CODE_IDLE = (
        "the speaker code means next to nothing: takes of one made voice are hardly more alike "
        "than those of two ({identity:.2f}, where real speech has 1)"
    )


@dataclass(frozen=True)
class Progress:
    """Where a training stands; losses are means over the steps since it was last asked.

    `diversity` is how far made voices lie from one another, as a share of real ones' distance;
    `take_diversity` is the same of the takes of one voice. `identity` is how much more alike two
    takes of one speaker are than those of two, as a share of what the listener hears in real
    speech; 0: the speaker code means nothing.
    """

    step: int
    discriminator_loss: float
    generator_loss: float
    moment_distance: float
    diversity: float
    take_diversity: float
    identity: float

    @property
    def faults(self) -> frozenset[Fault]:
        """What is wrong with the voices; nothing is before `JUDGED_FROM`."""
        if self.step < JUDGED_FROM:
            return frozenset()
        found = {
            Fault.VOICES_ALIKE: self.diversity < _LEAST_DIVERSITY,
            Fault.TAKES_ALIKE: self.take_diversity < _LEAST_DIVERSITY,
            Fault.CODE_IDLE: self.identity < _LEAST_IDENTITY,
        }
        return frozenset(fault for fault, is_there in found.items() if is_there)

    def explain(self, fault: Fault) -> str:
        """Return a fault in words, with the figures of now."""
        return f"step {self.step}: {fault.value.format(**asdict(self))}"


@dataclass(frozen=True)
class Spread:
    """How far voices lie from one another, and takes of one voice: standard deviations."""

    voices: float
    takes: float


def spread(points: Tensor, *, crossed: bool = False) -> Spread:
    """Return the spread of points (V, K, S) float32: K takes of each of V voices, 2 or more each.

    What takes add to the mean of a voice is taken off, so voices that are all one have a spread of
    about 0. `crossed`: take k is the same with every voice; then it is 0 exactly.
    """
    voices, takes, _ = points.shape
    means = points.mean(dim=1, keepdim=True)
    within = points - means
    noise = within
    if crossed:
        noise = within - within.mean(dim=0, keepdim=True)
    freedom = (voices - 1 if crossed else voices) * (takes - 1)
    added = noise.square().sum() / freedom / takes
    between = (means - means.mean(dim=0)).square().sum() / (voices - 1) - added
    variance = within.square().sum() / (voices * (takes - 1))
    return Spread(float(between.clamp_min(0).sqrt()), float(variance.sqrt()))


class DiversityMeter:
    """Measures generators against some speakers' patches: the same ones, and codes, every time."""

    def __init__(self, patches: SpeakerPatches, seed: int) -> None:
        self._seed = seed
        generator = numpy_generator(seed)
        takes = min(_REAL_TAKES, *(len(rows) for rows in patches.speakers))
        order = generator.permutation(len(patches.speakers))[:_REAL_VOICES]
        chosen = [generator.choice(patches.speakers[i], takes, replace=False) for i in order]
        real = torch.stack([voice_summary(patches.table.gather(rows)) for rows in chosen])
        self._real = spread(real)

    @torch.no_grad()
    def measure(self, generator: Generator) -> tuple[float, float]:
        """Return the diversity of voices and that of takes, as shares of real ones'."""
        draws = torch.Generator().manual_seed(self._seed)
        config, frames = generator.config, generator.front_end.frames
        speakers = torch.randn(_VOICES, config.speaker_dim, generator=draws)
        device = generator.output.weight.device
        summaries = []
        for _ in range(_TAKES):
            take = random_codes(config, frames, speakers[:1], draws)
            codes = Codes(
                speakers,
                take.session.expand(_VOICES, -1),
                take.content.expand(_VOICES, -1, -1),
                tuple(noise.expand(_VOICES, -1, -1) for noise in take.noise),
            )
            summaries.append(voice_summary(generator(codes.to(device))))
        made = spread(torch.stack(summaries, dim=1), crossed=True)
        real = max(self._real.voices, _LEAST_REAL * self._real.takes)
        return made.voices / real, made.takes / self._real.takes
