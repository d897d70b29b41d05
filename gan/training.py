"""The training of the generator: hinge losses, spectral normalisation, an averaged generator.

- *Hinge loss* on every place of a patch, and on pairs: Miyato et al., "Spectral normalization for
  generative adversarial networks", ICLR 2018. Both networks take turns.
- *Pairs* make the speaker code mean identity: the discriminator sees two patches of one speaker or
  of two and is told which. A real pair under the wrong name counts as made, as in Reed et al.,
  "Generative adversarial text to image synthesis", ICML 2016 (matching-aware discriminator).
- *Moments* (`gan.moments`): the generator also matches the mean and the spread of simple
  statistics of real batches, in the manner of feature matching (Salimans et al., "Improved
  techniques for training GANs", NeurIPS 2016). It brings the first thousand steps forward.
- *A listener* (`gan.listener`), a speaker encoder trained first and then frozen: same and other
  speakers should sound as alike to it as real ones do.
- *Two rates*: the discriminator learns twice as fast (Heusel et al., "GANs trained by a two
  time-scale update rule", NeurIPS 2017); at one rate the generator outran it.
- *The average* of the generator's weights over the last steps is what is kept (Karras et al. 2018).

Every step draws from a seed of its own, so that an interrupted training continues as if nothing
had happened (on a CPU bit for bit); everything that it needs is in one checkpoint file.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig, normalise
from fedspk.generator_description import NetworkConfig
from fedspk.seeds import derive, numpy_generator
from fedspk.weights import load_model, save_model
from gan.codes import random_codes
from gan.diversity import DiversityMeter, Progress
from gan.listener import Likeness, blank_listener, likeness, train_listener
from gan.moments import moment_distance, patch_moments
from gan.network import Discriminator, Generator
from gan.patches import SpeakerPatches

_BETAS = (0.5, 0.99)
_GENERATOR_PACE = 0.5
_REAL_MEMORY = 0.98
_LEAST_GAP = 1e-3
_STATE = "state"


@dataclass(frozen=True)
class GanTraining:
    """How long and how to train.

    Args:
        steps: updates of both networks.
        pairs: speakers of a batch, two patches each.
        crop_frames: training looks at windows of this length, which the generator makes as such.
        learning_rate: of the discriminator (Adam); the generator's is half of it.
        average: share of the old average that every step keeps.
        moments: weight of the distance of moments.
        identity: weight of the distance in what the listener hears.
        listener_steps: batches that the listener is trained on.
        width: of the discriminator.
        seed: of everything that is drawn.
        precision: "bfloat16" halves the time on processors that have it.

    Raises:
        FedspkError: a number is out of range.
    """

    steps: int = 5000
    pairs: int = 8
    crop_frames: int = 176
    learning_rate: float = 2e-4
    average: float = 0.998
    moments: float = 5.0
    identity: float = 10.0
    listener_steps: int = 1000
    width: int = 128
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.pairs < 2 or self.crop_frames < 32 or self.width < 8:
            raise FedspkError(
                f"generator training: needs steps >= 1, pairs >= 2, crop_frames >= 32 and width "
                f">= 8, got {self.steps}, {self.pairs}, {self.crop_frames} and {self.width}."
            )
        least = min(self.moments, self.identity, self.listener_steps)
        if not (self.learning_rate > 0 and 0 <= self.average < 1 and least >= 0):
            raise FedspkError(
                "generator training: needs learning_rate > 0, average from 0 to below 1, and "
                "moments, identity and listener_steps of 0 or more."
            )
        if self.precision not in ("float32", "bfloat16"):
            raise FedspkError(f"precision {self.precision!r} is neither float32 nor bfloat16.")


class GanTrainer:
    """Both networks at work; `average` is the generator that is kept, `history` what it came by.

    With a `checkpoint` of a training with the same configuration, that one is continued.

    Raises:
        FedspkError: a window is longer than a patch, or the checkpoint is broken or belongs to
            other networks.
    """

    def __init__(
        self,
        patches: SpeakerPatches,
        front_end: FrontEndConfig,
        network: NetworkConfig,
        config: GanTraining,
        device: str | torch.device = "cpu",
        checkpoint: Path | None = None,
    ) -> None:
        if config.crop_frames > front_end.frames:
            raise FedspkError(
                f"generator training: crop_frames is {config.crop_frames} and a patch has "
                f"{front_end.frames}; choose fewer."
            )
        self.config, self.front_end = config, front_end
        self.device = torch.device(device)
        self.step = 0
        self.history: list[Progress] = []
        self._patches = patches
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(config.seed, "networks"))
            self.generator = Generator(network, front_end).to(self.device)
            self.discriminator = Discriminator(front_end.bins, config.width).to(self.device)
        self._meter = DiversityMeter(patches, derive(config.seed, "diversity"))
        listener = (
            train_listener(
                patches, front_end.bins, config.crop_frames, config.listener_steps, config.seed
            )
            if checkpoint is None
            else blank_listener(front_end.bins)
        )
        self.listener = listener.to(self.device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self._optimisers = {
            "generator": self._adam(self.generator, _GENERATOR_PACE * config.learning_rate),
            "discriminator": self._adam(self.discriminator, config.learning_rate),
        }
        self._losses: list[Tensor] = []
        self._real: tuple[Tensor, Tensor] | None = None
        self._real_likeness: Likeness | None = None
        if checkpoint is not None:
            self._restore(checkpoint)

    def run(self, steps: int, on_step: Callable[[], object] | None = None) -> None:
        """Train for some steps, at most to the configured end."""
        for _ in range(min(steps, self.config.steps - self.step)):
            self._train()
            self.step += 1
            if on_step is not None:
                on_step()

    def progress(self) -> Progress:
        """Return where the training stands, which becomes part of its history.

        Raises:
            FedspkError: the training has diverged, or there was no step since.
        """
        if not self._losses:
            raise FedspkError("generator training: no step was made since the last report.")
        means = torch.stack(self._losses).mean(dim=0).tolist()
        discriminator, generator, moments, made_gap, real_gap = means
        self._losses.clear()
        diversity, take_diversity = self._meter.measure(self.average)
        identity = made_gap / max(real_gap, _LEAST_GAP)
        now = Progress(
            self.step, discriminator, generator, moments, diversity, take_diversity, identity
        )
        if not all(map(math.isfinite, astuple(now))):
            raise FedspkError(
                f"generator training diverged by step {self.step}; lower the learning rate "
                f"{self.config.learning_rate:g}."
            )
        self.history.append(now)
        return now

    def save(self, path: Path) -> None:
        """Write a checkpoint: everything that is needed to continue."""
        tensors = {
            f"{name}.{key}": value
            for name, part in self._all().items()
            for key, value in part.state_dict().items()
        }
        for name, optimiser in self._optimisers.items():
            for number, state in optimiser.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"adam.{name}.{number}.{key}"] = value
        for name, value in zip(("mean", "spread"), self._real or (), strict=False):
            tensors[f"real.{name}"] = value
        if self._real_likeness is not None:
            tensors |= {f"likeness.{n}": value for n, value in vars(self._real_likeness).items()}
        state = {"step": self.step, "history": [asdict(point) for point in self.history]}
        save_model(path, tensors, {_STATE: json.dumps(state)})

    def _restore(self, path: Path) -> None:
        tensors, metadata = load_model(path)
        try:
            for name, part in self._all().items():
                part.load_state_dict(_below(tensors, f"{name}."))
            for name, optimiser in self._optimisers.items():
                _restore_adam(optimiser, _below(tensors, f"adam.{name}."))
            real = _below(tensors, "real.")
            self._real = (real["mean"].to(self.device), real["spread"].to(self.device))
            self._real_likeness = Likeness(**_below(tensors, "likeness.")).to(self.device)
            state = json.loads(metadata[_STATE])
            self.step = int(state["step"])
            self.history = [Progress(**point) for point in state["history"]]
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise FedspkError(
                f"{path}: is not a checkpoint of this training; start anew in another folder."
            ) from error

    @staticmethod
    def _adam(part: nn.Module, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(part.parameters(), lr=rate, betas=_BETAS)

    def _learning(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def _all(self) -> dict[str, nn.Module]:
        return {**self._learning(), "average": self.average, "listener": self.listener}

    def _train(self) -> None:
        seed = derive(self.config.seed, "step", self.step)
        real = self._real_pairs(seed)
        with self._autocast():
            made = self._made_pairs(seed)
            discriminator_loss = self._judge(real, made.detach())
        self._update("discriminator", discriminator_loss)
        self.discriminator.requires_grad_(False)
        with self._autocast():
            fooled = self._fool(made)
        distance = moment_distance(patch_moments(made.flatten(0, 1)), *self._real_moments(real))
        heard, wanted = likeness(self.listener, made), self._heard(real)
        loss = fooled + self.config.moments * distance
        self._update("generator", loss + self.config.identity * heard.distance(wanted))
        self.discriminator.requires_grad_(True)
        self._follow()
        gaps = (heard.same - heard.other, wanted.same - wanted.other)
        losses = (discriminator_loss, fooled, distance, *gaps)
        self._losses.append(torch.stack([loss.detach().float() for loss in losses]))

    def _judge(self, real: Tensor, made: Tensor) -> Tensor:
        """Return the discriminator's hinge loss on batches (2, P, T, bins) of pairs."""
        verdicts, embedding = self.discriminator(torch.cat([real, made]).flatten(0, 1))
        loss = torch.zeros((), device=self.device)
        for verdict in verdicts:
            true, false = verdict.chunk(2)
            loss = loss + F.relu(1 - true).mean() + F.relu(1 + false).mean()
        first, second, made_first, made_second = embedding.chunk(4)
        same = self.discriminator.judge_pairs(first, second)
        apart = self.discriminator.judge_pairs(first, second.roll(1, 0))
        made_same = self.discriminator.judge_pairs(made_first, made_second)
        made_apart = self.discriminator.judge_pairs(made_first, made_second.roll(1, 0))
        right = F.relu(1 - same[:, 1]).mean() + F.relu(1 - apart[:, 0]).mean()
        wrong_name = F.relu(1 + same[:, 0]).mean() + F.relu(1 + apart[:, 1]).mean()
        false = F.relu(1 + made_same[:, 1]).mean() + F.relu(1 + made_apart[:, 0]).mean()
        return loss + right + (wrong_name + false) / 2

    def _fool(self, made: Tensor) -> Tensor:
        """Return the generator's loss on pairs (2, P, T, bins)."""
        verdicts, embedding = self.discriminator(made.flatten(0, 1))
        first, second = embedding.chunk(2)
        same = self.discriminator.judge_pairs(first, second)[:, 1]
        apart = self.discriminator.judge_pairs(first, second.roll(1, 0))[:, 0]
        loss: Tensor = -sum(verdict.mean() for verdict in verdicts) - same.mean() - apart.mean()
        return loss

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _update(self, name: str, loss: Tensor) -> None:
        optimiser = self._optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the generator, quickly while both are young."""
        keep = min(self.config.average, (1 + self.step) / (10 + self.step))
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - keep)

    @torch.no_grad()
    def _real_moments(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and spread of real batches' moments, averaged over the last batches."""
        moments = patch_moments(real.flatten(0, 1))
        now = (moments.mean(dim=0), moments.std(dim=0))
        if self._real is None:
            self._real = now
        old_mean, old_spread = self._real
        share = 1 - _REAL_MEMORY
        self._real = (old_mean.lerp(now[0], share), old_spread.lerp(now[1], share))
        return self._real

    @torch.no_grad()
    def _heard(self, real: Tensor) -> Likeness:
        """Return what the listener hears in real pairs, averaged over the last batches."""
        now = likeness(self.listener, real)
        if self._real_likeness is None:
            self._real_likeness = now
        self._real_likeness = self._real_likeness.lerp(now, 1 - _REAL_MEMORY)
        return self._real_likeness

    def _real_pairs(self, seed: int) -> Tensor:
        """Return pairs (2, P, crop, bins): windows of real patches, normalised as windows."""
        generator = numpy_generator(seed, "real")
        pairs = torch.stack(self._patches.pairs(self.config.pairs, generator))
        length = self.config.crop_frames
        starts = generator.integers(pairs.shape[2] - length + 1, size=pairs.shape[:2])
        windows = torch.stack(
            [
                pairs[side, i, start : start + length]
                for side, row in enumerate(starts)
                for i, start in enumerate(row)
            ]
        )
        normal = normalise(windows.to(self.device), self.front_end.normalise)
        return normal.view(pairs.shape[0], pairs.shape[1], length, -1)

    def _made_pairs(self, seed: int) -> Tensor:
        """Return pairs (2, P, crop, bins) that share their speaker codes."""
        generator = torch.Generator().manual_seed(derive(seed, "made"))
        config, count = self.generator.config, self.config.pairs
        speakers = torch.randn(count, config.speaker_dim, generator=generator).repeat(2, 1)
        codes = random_codes(config, self.config.crop_frames, speakers, generator)
        made: Tensor = self.generator(codes.to(self.device), self.config.crop_frames)
        return made.view(2, count, self.config.crop_frames, -1)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _restore_adam(optimiser: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
