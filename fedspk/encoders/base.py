"""What every speaker encoder is: features in, one embedding an utterance out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Encoder(nn.Module):
    """Map features (B, frames, bins) float32 to embeddings (B, `embedding_dim`), not normalised."""

    embedding_dim: int

    def forward(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        embedding: Tensor = super().__call__(*args, **kwargs)
        return embedding
