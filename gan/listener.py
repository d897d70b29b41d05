"""A small speaker encoder that listens to the generator while it trains.

It is trained first, on the same public speakers, and then frozen. What it hears in pairs of made
patches, how alike two takes of one speaker and how different two speakers are, should be what it
hears in real pairs: without it the generator puts all variety into the takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedspk.encoders import Encoder, build_encoder
from fedspk.model import HeadConfig, build_model
from fedspk.progress import progress
from fedspk.seeds import derive, numpy_generator
from fedspk.training import TrainingConfig, fit
from gan.patches import SpeakerPatches

_ENCODER = "tdnn"
_BATCH = 32
_TAKES = 4
_SHRINK = 0.1


@dataclass(frozen=True)
class Likeness:
    """What a listener hears in a batch of pairs; cosines are means over the batch.

    same: of two takes of one speaker; other: of two speakers; mean: mean embedding (D,).
    """

    same: Tensor
    other: Tensor
    mean: Tensor

    def distance(self, real: Likeness) -> Tensor:
        """Return how far this is from what real pairs sound like, a scalar."""
        cosines = (self.same - real.same).abs() + (self.other - real.other).abs()
        away: Tensor = cosines + torch.linalg.vector_norm(self.mean - real.mean)
        return away

    def to(self, device: torch.device) -> Likeness:
        """Return the same on another device."""
        return Likeness(self.same.to(device), self.other.to(device), self.mean.to(device))

    def lerp(self, other: Likeness, share: float) -> Likeness:
        """Return a mean of both, with this `share` of the other."""
        return Likeness(
            self.same.lerp(other.same, share),
            self.other.lerp(other.other, share),
            self.mean.lerp(other.mean, share),
        )


class Listener(nn.Module):
    """Patches (B, frames, bins) to embeddings (B, D) of length 1, centred and whitened.

    Whitened by the covariance within speakers, so that what tells one speaker's takes apart counts
    for little: Hatch et al., "Within-class covariance normalization for SVM-based speaker
    recognition", Interspeech 2006.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(encoder.embedding_dim))
        self.register_buffer("whitening", torch.eye(encoder.embedding_dim))

    def forward(self, patches: Tensor) -> Tensor:
        centred: Tensor = self.encoder(patches) - self.mean
        return F.normalize(centred @ self.whitening, dim=1)

    @torch.no_grad()
    def adapt(self, embeddings: Tensor) -> None:
        """Learn to centre and whiten from the encoder's embeddings (speakers, takes, D)."""
        within = (embeddings - embeddings.mean(dim=1, keepdim=True)).flatten(0, 1)
        covariance = within.T @ within / len(within)
        values, vectors = torch.linalg.eigh(covariance)
        floor = _SHRINK * values.mean()
        self.mean.copy_(embeddings.flatten(0, 1).mean(dim=0))
        self.whitening.copy_(vectors @ torch.diag((values + floor).rsqrt()) @ vectors.T)


def likeness(listener: Listener, pairs: Tensor) -> Likeness:
    """Return what the listener hears in pairs (2, P, frames, bins) of P different speakers."""
    first, second = listener(pairs.flatten(0, 1)).chunk(2)
    cosines = first @ second.T
    count = len(first)
    others = (cosines.sum() - cosines.trace()) / (count * (count - 1))
    return Likeness(cosines.trace() / count, others, torch.cat([first, second]).mean(dim=0))


def blank_listener(bins: int) -> Listener:
    """Return an untrained listener, frozen, which a trained one's weights fit into."""
    return Listener(build_encoder(_ENCODER, bins=bins)).eval().requires_grad_(False)


def train_listener(
    patches: SpeakerPatches, bins: int, crop_frames: int, steps: int, seed: int
) -> Listener:
    """Return a listener that has learned to tell the speakers apart, frozen."""
    head = HeadConfig("am", public=len(patches.speakers), devices=0, scale=20.0, margin=0.1)
    model = build_model(_ENCODER, head, bins=bins, seed=derive(seed, "listener"))
    config = TrainingConfig(
        steps=steps,
        batch_size=_BATCH,
        learning_rate=3e-3,
        final_learning_rate=1e-4,
        optimiser="adamw",
        clip_norm=5.0,
    )
    with progress(total=steps, description="Training its listener", unit="batch") as bar:
        fit(model, _Crops(patches, crop_frames), config, seed=seed, on_step=bar.update)
    listener = Listener(model.encoder)
    with torch.no_grad():
        heard = [
            model(patches.table.gather(rows[:_TAKES])[:, :crop_frames]) for rows in patches.speakers
        ]
    listener.adapt(torch.stack(heard))
    return listener.eval().requires_grad_(False)


@dataclass(frozen=True)
class _Crops:
    """A `BatchSource` of windows of the speakers' patches."""

    patches: SpeakerPatches
    crop_frames: int

    def batches(self, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = numpy_generator(seed, "listener batches")
        speakers = self.patches.speakers
        while True:
            labels = generator.integers(len(speakers), size=batch_size)
            rows = [generator.choice(speakers[label]) for label in labels]
            features = self.patches.table.gather(rows)
            start = generator.integers(features.shape[1] - self.crop_frames + 1)
            yield features[:, start : start + self.crop_frames], torch.from_numpy(labels)
