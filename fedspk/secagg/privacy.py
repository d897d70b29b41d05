"""Differential privacy for a secure sum: distributed discrete Gaussian noise and its budget."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PrivacyConfig(BaseModel):
    """Differential privacy of a run: how much noise, and when it must stop.

    noise_multiplier: standard deviation of the noise in a sum, over the sum's L2 sensitivity.
    epsilon, delta: the budget of the whole run; a round that would exceed it is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_multiplier: float = Field(gt=0, le=1e6)
    epsilon: float = Field(gt=0, le=1e6)
    delta: float = Field(gt=0, lt=1)
