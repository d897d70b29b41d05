"""The two networks: a generator of log-mel patches, and the discriminator that it learns from.

A patch is (frames, bins) float32, normalised as the front end does. The generator makes it of a
*speaker code*, which says whose voice it is, and of a *take*, which is everything else: a session
code (room, microphone, noise), a coarse sequence in time (what is said) and fine noise. The same
speaker code with other takes gives further utterances of the same invented speaker.

Time is the only axis of convolution and the bins are channels, as in an encoder of the x-vector
family: a voice does not move along the frequency axis, and on a CPU this is several times cheaper
than images.

Sources: styles that scale and shift every layer, and noise in every layer: Karras et al., "A
style-based generator architecture for generative adversarial networks" (StyleGAN), CVPR 2019;
nearest-neighbour upsampling: Odena et al., "Deconvolution and checkerboard artifacts", Distill
2016; spectral normalisation: Miyato et al., ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fedspk.features import FrontEndConfig, normalise
from fedspk.generator_description import KERNEL, NetworkConfig

_SLOPE = 0.2
_GAIN = 2.0  # a spectrally normalised layer halves a signal's size; this gives it back
_FLOOR = 1e-8


@dataclass(frozen=True)
class Codes:
    """What a batch of patches is made of.

    speaker: (B, speaker_dim); session: (B, session_dim); content: (B, content_dim, steps);
    noise: one (B, 1, T_layer) for each layer.
    """

    speaker: Tensor
    session: Tensor
    content: Tensor
    noise: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Codes:
        """Return the same codes on another device."""
        return Codes(
            self.speaker.to(device),
            self.session.to(device),
            self.content.to(device),
            tuple(noise.to(device) for noise in self.noise),
        )


class Generator(nn.Module):
    """Codes to patches (B, frames, bins) float32, normalised as `front_end` says."""

    def __init__(self, config: NetworkConfig, front_end: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = front_end
        self.voice = nn.Sequential(
            _PixelNorm(),
            nn.Linear(config.speaker_dim, config.style_dim),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(config.style_dim, config.style_dim),
            nn.LeakyReLU(_SLOPE),
        )
        style = config.style_dim + config.session_dim
        inputs = (config.content_dim, *config.channels[:-1])
        self.layers = nn.ModuleList(
            _StyledLayer(width, outputs, style, stretch=1 if number == 0 else 2)
            for number, (width, outputs) in enumerate(zip(inputs, config.channels, strict=True))
        )
        self.output = nn.Conv1d(config.channels[-1], front_end.bins, KERNEL, padding=KERNEL // 2)

    def forward(self, codes: Codes, frames: int | None = None) -> Tensor:
        """Return patches of `frames` frames, by default the front end's."""
        style = torch.cat([self.voice(codes.speaker), codes.session], dim=1)
        x = codes.content  # (B, content_dim, steps)
        for layer, noise in zip(self.layers, codes.noise, strict=True):
            x = layer(x, style, noise)
        bands: Tensor = self.output(x)[:, :, : frames or self.front_end.frames]
        return normalise(bands.transpose(1, 2).float(), self.front_end.normalise)


class Discriminator(nn.Module):
    """Tells real patches from made ones, and real pairs of one or two speakers from made pairs.

    `texture` looks at the patch as a picture, `course` at its frames in time; both judge every
    place of a patch. `pair` judges two patches together, see `judge_pairs`. Every layer is
    spectrally normalised (Miyato et al. 2018) up to a constant gain, without which verdicts
    vanish and nothing is learned.
    """

    def __init__(self, bins: int, width: int = 128, embedding_dim: int = 64) -> None:
        super().__init__()
        picture = max(8, width // 4)
        self.course = nn.Sequential(
            _conv1d(bins, width, stride=1),
            _conv1d(width, width, stride=2),
            _conv1d(width, 2 * width, stride=2),
            _conv1d(2 * width, 2 * width, stride=2),
        )
        self.texture = nn.Sequential(
            _conv2d(1, picture // 2), _conv2d(picture // 2, picture), _conv2d(picture, 2 * picture)
        )
        self.course_verdict = spectral_norm(nn.Conv1d(2 * width, 1, 1))
        self.texture_verdict = spectral_norm(nn.Conv2d(2 * picture, 1, 1))
        self.embedding = spectral_norm(nn.Linear(4 * width, embedding_dim))
        self.pair = nn.Sequential(
            spectral_norm(nn.Linear(2 * embedding_dim, embedding_dim)),
            nn.LeakyReLU(_SLOPE),
            _Gain(),
            spectral_norm(nn.Linear(embedding_dim, 2)),
        )

    def forward(self, patches: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return verdicts on every place of patches (B, T, bins), and embeddings (B, D)."""
        course = self.course(patches.transpose(1, 2))  # (B, 2 width, T / 8)
        verdicts = [
            self.course_verdict(course),
            self.texture_verdict(self.texture(patches.unsqueeze(1))),
        ]
        pooled = torch.cat([course.mean(dim=2), course.std(dim=2)], dim=1)
        embedding: Tensor = _GAIN * self.embedding(pooled)
        return verdicts, embedding

    def judge_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """Return verdicts (B, 2) on embeddings (B, D) of pairs, the same whichever comes first.

        Column 0: how real the pair is as one of two speakers, column 1: as one of one speaker.
        """
        both = torch.cat([(first - second).square(), first * second], dim=1)
        verdicts: Tensor = self.pair(both)
        return verdicts


class _PixelNorm(nn.Module):
    """Scale (B, C, ...) to length sqrt(C) along the channels, place by place."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + _FLOOR)


class _Gain(nn.Module):
    """Scale by a constant: the discriminator's Lipschitz constant is more than 1, but bounded."""

    def forward(self, x: Tensor) -> Tensor:
        return _GAIN * x


class _StyledLayer(nn.Module):
    """Stretch in time, convolve, add noise, normalise, then scale and shift as the style says."""

    def __init__(self, inputs: int, outputs: int, style: int, *, stretch: int) -> None:
        super().__init__()
        self.stretch = stretch
        self.convolution = nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2)
        self.noise = nn.Parameter(torch.zeros(outputs, 1))
        self.norm = _PixelNorm()
        self.style = nn.Linear(style, 2 * outputs)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        if self.stretch > 1:
            x = x.repeat_interleave(self.stretch, dim=2)
        x = F.leaky_relu(self.convolution(x) + self.noise * noise, _SLOPE)
        scale, shift = self.style(style).unsqueeze(2).chunk(2, dim=1)
        styled: Tensor = self.norm(x) * (1 + scale) + shift
        return styled


def _conv1d(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    convolution = nn.Conv1d(inputs, outputs, KERNEL, stride=stride, padding=KERNEL // 2)
    return nn.Sequential(spectral_norm(convolution), nn.LeakyReLU(_SLOPE), _Gain())


def _conv2d(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
    return nn.Sequential(spectral_norm(convolution), nn.LeakyReLU(_SLOPE), _Gain())
