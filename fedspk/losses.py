"""Losses as heads: binary cross entropy, softmax, AM, AAM; class vectors learned or fixed.

A head takes embeddings (B, D) and labels (B,) int64 and returns the mean loss, a float32 scalar;
its `logits` are the scores without margin. Everything is computed in float32, under autocast too.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedspk.errors import FedspkError
from fedspk.seeds import numpy_generator

_SQUARED_SINE_FLOOR = 1e-6
_LENGTH_FLOOR = 1e-6


def codewords(count: int, dim: int, seed: int) -> Tensor:
    """Return `count` fixed, nearly orthogonal unit vectors (count, dim) float32, bits by `seed`.

    Rows of a Hadamard matrix with columns drawn and signs flipped by `seed`: exactly orthogonal
    when `dim` is a power of two and `count` <= `dim`; otherwise cosines are of order dim ** -0.5.
    Only additions of signs are involved, so every machine gets the same bits, and device k's
    codeword does not depend on `count`.

    Source: after Hosseini et al., "Federated learning of user verification models without sharing
    embeddings" (FedUV), arXiv 2104.08776, whose targets are codewords of an error-correcting code.
    """
    order = 1 << max(0, dim - 1).bit_length()
    hadamard = scipy.linalg.hadamard(order, dtype=np.int8)
    blocks = []
    for block in range(-(-count // order)):
        generator = numpy_generator("codewords", seed, dim, block)
        rows, columns = generator.permutation(order), generator.permutation(order)[:dim]
        signs = generator.integers(0, 2, dim, dtype=np.int8) * 2 - 1
        blocks.append(hadamard[np.ix_(rows, columns)] * signs)
    table = np.concatenate(blocks)[:count] if blocks else np.zeros((0, dim), np.int8)
    return torch.from_numpy(table.astype(np.float32) / np.float32(math.sqrt(dim)))


class ClassWeights(nn.Module):
    """One vector a class, (public + devices, D): public speakers' rows first, then devices' rows.

    `public` is learned and shared. The devices' rows are either learned (`device`: usually one
    private row) or, with `codeword_seed`, all devices' fixed codewords (a buffer).
    """

    public: Tensor
    device: Tensor
    codewords: Tensor

    def __init__(
        self, dim: int, public: int, devices: int = 1, *, codeword_seed: int | None = None
    ) -> None:
        super().__init__()
        if public + devices < 1:
            raise FedspkError("a classification head needs at least one public or device class.")
        self.fixed = codeword_seed is not None
        self.public = nn.Parameter(F.normalize(torch.randn(public, dim), dim=1))
        if codeword_seed is not None:
            self.register_buffer("codewords", codewords(devices, dim, codeword_seed))
        else:
            self.device = nn.Parameter(F.normalize(torch.randn(devices, dim), dim=1))

    def matrix(self) -> Tensor:
        """Return all classes' vectors, (C, D) float32."""
        return torch.cat([self.public, self.codewords if self.fixed else self.device])


class Head(nn.Module):
    """What every head offers: `forward` is the loss, `logits` the scores without margin."""

    def logits(self, embedding: Tensor) -> Tensor:
        """Return scores (B, C) float32, or (B, 1) of a binary head."""
        raise NotImplementedError


class BinaryHead(Head):
    """Client against impostor: one logit and binary cross entropy; label 1 is the client.

    Source: Woubie and Bäckström, "Federated learning for privacy-preserving speaker recognition".
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(1))

    def logits(self, embedding: Tensor) -> Tensor:
        with _full_precision(embedding):
            return (embedding.float() @ self.weight + self.bias).unsqueeze(1)

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        return binary_cross_entropy(self.logits(embedding).squeeze(1), labels)


class SoftmaxHead(Head):
    """Softmax cross entropy over inner products, without bias: -log softmax(W e)_y."""

    def __init__(self, classes: ClassWeights) -> None:
        super().__init__()
        self.classes = classes

    def logits(self, embedding: Tensor) -> Tensor:
        with _full_precision(embedding):
            return F.linear(embedding.float(), self.classes.matrix())

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(embedding), labels)


class _CosineHead(Head):
    def __init__(self, classes: ClassWeights, scale: float, margin: float) -> None:
        super().__init__()
        if scale <= 0 or not 0 <= margin < math.pi / 2:
            raise FedspkError(
                f"scale {scale} and margin {margin}: scale must be positive, "
                "margin at least 0 and below pi / 2."
            )
        self.classes, self.scale, self.margin = classes, scale, margin

    def logits(self, embedding: Tensor) -> Tensor:
        with _full_precision(embedding):
            return self.scale * self._cosine(embedding)

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        with _full_precision(embedding):
            cosine = self._cosine(embedding)
            target = cosine.gather(1, labels.unsqueeze(1))  # (B, 1)
            scores = cosine.scatter(1, labels.unsqueeze(1), self._with_margin(target))
            return F.cross_entropy(self.scale * scores, labels)

    def _cosine(self, embedding: Tensor) -> Tensor:
        return F.linear(
            F.normalize(embedding.float(), dim=1, eps=_LENGTH_FLOOR),
            F.normalize(self.classes.matrix(), dim=1, eps=_LENGTH_FLOOR),
        )

    def _with_margin(self, cosine: Tensor) -> Tensor:
        raise NotImplementedError


class AMSoftmax(_CosineHead):
    """Additive margin softmax: the true class's cosine less m, all times s.

    Source: Wang et al., "Additive margin softmax for face verification", 2018, equation (6).
    """

    def __init__(self, classes: ClassWeights, scale: float = 30.0, margin: float = 0.2) -> None:
        super().__init__(classes, scale, margin)

    def _with_margin(self, cosine: Tensor) -> Tensor:
        return cosine - self.margin


class AAMSoftmax(_CosineHead):
    """Additive angular margin softmax: cos(theta + m) for the true class, all times s.

    Source: Deng et al., "ArcFace", CVPR 2019, equation (3). cos(theta + m) is expanded, with the
    squared sine floored at 1e-6: the root's slope stays finite when an embedding sits exactly on
    its class vector. Beyond theta = pi - m, where cos(theta + m) would rise again, the line
    cos(theta) - (1 + cos(pi - m)) continues it downwards without a jump.
    """

    def __init__(self, classes: ClassWeights, scale: float = 40.0, margin: float = 0.6) -> None:
        super().__init__(classes, scale, margin)

    def _with_margin(self, cosine: Tensor) -> Tensor:
        sine = (1.0 - cosine.square()).clamp_min(_SQUARED_SINE_FLOOR).sqrt()
        shifted = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        turning_point = -math.cos(self.margin)
        return torch.where(cosine > turning_point, shifted, cosine - (1.0 + turning_point))


def binary_cross_entropy(logit: Tensor, labels: Tensor) -> Tensor:
    """Return the mean binary cross entropy of `logit` (B,) where `labels` (B,) 1 is the client."""
    return F.binary_cross_entropy_with_logits(logit, labels.to(logit.dtype))


def _full_precision(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
