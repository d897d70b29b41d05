"""A second device where there is none: PyTorch's "meta", which computes shapes but no numbers.

Like a graphics card it refuses most work on tensors of two devices. What is fetched from it is
zeros.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

OTHER_DEVICE = "meta"


def let_numbers_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch zeros from the other device, which by itself has nothing to fetch."""
    for name in ("tolist", "__float__"):
        _replace(monkeypatch, name, getattr(Tensor, name))
    monkeypatch.setattr(Tensor, "cpu", _fetched)


def _replace(monkeypatch: pytest.MonkeyPatch, name: str, original: Any) -> None:
    monkeypatch.setattr(Tensor, name, lambda tensor: original(_fetched(tensor)))


def _fetched(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor
