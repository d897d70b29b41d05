"""What a run says about its secure sums; the protocol's own limits are the devices' policy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Combination = Literal["mean", "median", "trimmed_mean"]


class PrivacyConfig(BaseModel):
    """Differential privacy of a run: how much noise, and when it must stop.

    noise_multiplier: standard deviation of the noise in a sum, over the sum's L2 sensitivity.
    epsilon, delta: the budget of every device over the whole run; a sum beyond it is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_multiplier: float = Field(gt=0, le=1e6)
    epsilon: float = Field(gt=0, le=1e6)
    delta: float = Field(gt=0, lt=1)


class SecureConfig(BaseModel):
    """How a run sums the devices' updates: the aggregator learns the sums and no single update.

    norm: a device scales an update of a larger L2 norm down to this one.
    maximum_weight: a device with more utterances than this counts as having this many.
    precision_bits: most bits of one quantised number; a large cohort leaves fewer.
    cohort_size: devices of one sum at most; larger rounds are divided into cohorts of one size.
    full_graph_limit: up to so many devices mask with all others, more with some of them.
    corrupt_fraction, dropout_fraction: shares of a cohort that may be dishonest, or may fail.
    combine: how the cohorts' means become one; "median" and "trimmed_mean" (Yin et al. 2018) bound
        what a dishonest cohort can do, and divide a round into five cohorts or more, from 14
        devices on into seven; five must remain.
    attempts: how often a sum that cannot be finished is tried in all, with other devices.
    stage_timeout_seconds: how long to wait for the answers of a stage in which nobody trains.
    privacy: noise and budget of differential privacy; None adds no noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    norm: float = Field(default=10.0, gt=0, le=1e6)
    maximum_weight: int = Field(default=1024, ge=1, le=1 << 20)
    precision_bits: int = Field(default=24, ge=8, le=24)
    cohort_size: int = Field(default=1000, ge=2, le=10_000)
    full_graph_limit: int = Field(default=200, ge=2)
    corrupt_fraction: float = Field(default=0.1, ge=0, lt=1 / 3)
    dropout_fraction: float = Field(default=0.1, ge=0, lt=1)
    combine: Combination = "mean"
    attempts: int = Field(default=3, ge=1)
    stage_timeout_seconds: float = Field(default=45.0, gt=0)
    privacy: PrivacyConfig | None = None
