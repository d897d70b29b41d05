"""What is simulated: the service, its load, the rollout of a new model and what goes wrong.

Times are in seconds, lengths of audio in seconds of audio, unless a name says otherwise. Every
setting may stand in a TOML or YAML file under the names used here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

DEFAULT_STRATEGIES = ("SSO", "SSO-sync", "SSO-hash", "SSO-mul", "SD")


MOST_REQUESTS = 20_000_000  # of one run: more would not fit into the memory of most machines


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("true and false are no values here; give a number or a word")
        return value


class Arrivals(_Settings):
    """When requests are sent; `interval` of the configuration is the mean time between two.

    kind: regular, every `interval` seconds from 0 on; poisson; diurnal, Poisson with a rate that
        swings as a sine over `period_hours`, from its mean up by `swing` times the mean and down
        again; trace, from a file.
    trace: text file of one request a line: seconds since the start, ascending, and optionally the
        user's number and the seconds of audio, with commas. It replaces what it names.
    """

    kind: Literal["poisson", "regular", "diurnal", "trace"] = "poisson"
    swing: Share = 0.8
    period_hours: Positive = 24.0
    trace: Path | None = None


class UserRates(_Settings):
    """How often each user speaks, relative to the others.

    kind: exponential, user i with weight decay**i (section 7.4.3 of the paper); zipf, with weight
        1 / (i + 1)**exponent; linear, with weight i + 1; uniform.
    """

    kind: Literal["exponential", "zipf", "linear", "uniform"] = "exponential"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    exponent: NotNegative = 1.0


class Audio(_Settings):
    """The audio of a request, drawn once a request.

    kind: fixed, every request of `seconds`; lognormal and uniform, with mean `seconds` and
        relative standard deviation `spread`; exponential, with mean `seconds`.
    kbit_per_s: of the upload; 16 kHz and 16 bit are 256.
    """

    kind: Literal["fixed", "lognormal", "uniform", "exponential"] = "fixed"
    seconds: Positive = 5.0
    spread: Annotated[float, Field(ge=0, le=1)] = 0.3
    kbit_per_s: Positive = 256.0


class Links(_Settings):
    """Both networks: a message takes the latency and its size over the bandwidth.

    client_*: between a device and the frontend. worker_*: between frontend and workers.
    jitter: relative standard deviation, between requests, of the time on the client's link.
    reply_bytes, profile_bytes: sizes of a reply and of one speaker profile.
    """

    client_mbit_per_s: Positive = 5.0
    client_latency_s: NotNegative = 0.0
    worker_mbit_per_s: Positive = 1000.0
    worker_latency_s: NotNegative = 0.0
    jitter: Annotated[float, Field(ge=0, le=0.3)] = 0.1
    reply_bytes: Annotated[int, Field(ge=0)] = 100
    profile_bytes: Annotated[int, Field(ge=0)] = 1024


class Database(_Settings):
    """The profile database: seconds that one read and one write take."""

    read_s: NotNegative = 0.0005
    write_s: NotNegative = 0.01


class Worker(_Settings):
    """One cloud worker.

    real_time_factor: seconds of computing for a second of audio.
    concurrency: requests served at a time, the others queue first come, first served, in the
        order in which the frontend sent them to the worker; None (`"infinite"` in a file): as many
        as come.
    gflops_per_second: computing for a second of audio, 1e9 floating-point operations.
    """

    real_time_factor: Positive = 0.1
    concurrency: Annotated[int, Field(ge=1, le=1000)] | None = 1
    gflops_per_second: Positive = 0.42

    @field_validator("concurrency", mode="before")
    @classmethod
    def _infinite(cls, value: object) -> object:
        return None if value == "infinite" else value


class Enrolment(_Settings):
    """What a profile is made of, again at each re-enrolment: utterances of `seconds` each."""

    utterances: Annotated[int, Field(ge=1)] = 3
    seconds: Positive = 5.0

    @property
    def audio_s(self) -> float:
        """Seconds of audio of one enrolment."""
        return self.utterances * self.seconds


class Rollout(_Settings):
    """When each worker gets the new model.

    kind: exponential, each worker after an independent exponential time of mean `mean_s` (the
        paper's); rolling, one worker each `step_s`; canary, a `canary_share` of the workers first,
        the others rolling after `canary_hold_s`; blue-green, all at once. The order of the workers
        is drawn.
    start_s: when the rollout begins.
    second_after_s: the version after that is rolled out in the same way, so long after the first
        rollout began, be it finished or not.
    rollback_after_s: the new models turn out bad: so long after the rollout began every worker
        returns to the first version, and no further one is updated.
    offline_update_s: how long the strategy `offline` needs to update the workers, before it
        re-enrols everybody.
    """

    kind: Literal["exponential", "rolling", "canary", "blue-green"] = "exponential"
    start_s: NotNegative = 0.0
    mean_s: Positive = 3600.0
    step_s: NotNegative = 360.0
    canary_share: Share = 0.1
    canary_hold_s: NotNegative = 1800.0
    second_after_s: Positive | None = None
    rollback_after_s: Positive | None = None
    offline_update_s: NotNegative = 60.0


class Faults(_Settings):
    """Workers that crash: what they hold is lost, and they take nothing until repaired.

    crashes_per_hour: of each worker. A request that is lost is sent again, `timeout_s` later and
    to another worker drawn anew, at most `retries` times; then it has failed. That holds for every
    strategy: with one worker for each user the request leaves the user's, and may bounce.
    """

    crashes_per_hour: NotNegative = 0.0
    repair_s: Positive = 60.0
    timeout_s: NotNegative = 1.0
    retries: Annotated[int, Field(ge=0)] = 2


class Devices(_Settings):
    """Devices that hold the profile (hybrid) or the model, too (device).

    handshake_s: a device asks the service for its newest version so often (hybrid), or for a new
        model (device), from a phase of its own on.
    real_time_factor: seconds of computing for a second of audio on the device.
    model_megabytes: what a device downloads when a model is new.
    """

    handshake_s: Positive = 600.0
    real_time_factor: Positive = 0.3
    model_megabytes: Positive = 10.0


class Compat(_Settings):
    """Mean times that SpeakerVerSim draws from, a leg or step each, and its flops.

    noise: standard deviation of each, relative to its mean.
    """

    client_frontend_s: Positive = 0.244
    frontend_worker_s: Positive = 0.0012
    database_read_s: Positive = 0.0005
    database_write_s: Positive = 0.01
    inference_s: Positive = 0.5
    gflops_per_inference: Positive = 2.1
    noise: Annotated[float, Field(ge=0, le=0.3)] = 0.1


class VersioningConfig(_Settings):
    """Everything that decides the numbers of a simulation.

    model: default, the service as described; compat, SpeakerVerSim's own arithmetic: of the
        settings it uses workers, users, user_rates, interval, hours, sync_interval, the mean time
        of the exponential rollout, and those of `compat`.
    strategies: compared on the same draws; `run.strategy_names` lists all.
    runs, seed: run i of seed s draws the same in every process.
    workers: cloud workers. users: enrolled users. interval: mean seconds between two requests of
        the whole service. hours: length of a run.
    sync_interval: seconds between two polls of the workers' versions by the frontend (SSO-sync).
    groups: groups of workers and of users in SD-group.
    """

    model: Literal["default", "compat"] = "default"
    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    runs: Annotated[int, Field(ge=1)] = 100
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=1, le=10_000)] = 10
    users: Annotated[int, Field(ge=1, le=10_000_000)] = 1
    interval: Positive = 10.0
    hours: Positive = 3.0
    sync_interval: Positive = 600.0
    groups: Annotated[int, Field(ge=1)] = 2
    arrivals: Arrivals = Arrivals()
    user_rates: UserRates = UserRates()
    audio: Audio = Audio()
    links: Links = Links()
    database: Database = Database()
    worker: Worker = Worker()
    enrolment: Enrolment = Enrolment()
    rollout: Rollout = Rollout()
    faults: Faults = Faults()
    devices: Devices = Devices()
    compat: Compat = Compat()

    @property
    def duration_s(self) -> float:
        """Length of a run."""
        return self.hours * 3600.0

    @field_validator("strategies")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name each strategy once, at least one")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        asked = "groups" in self.model_fields_set or "SD-group" in self.strategies
        if asked and self.groups > self.workers:
            raise ValueError(
                f"{self.groups} groups need as many workers, but there are {self.workers}; "
                "give fewer groups or more workers"
            )
        if (self.arrivals.kind == "trace") != (self.arrivals.trace is not None):
            raise ValueError('arrivals.kind = "trace" and a file arrivals.trace go together')
        if not math.isfinite(self.duration_s):
            raise ValueError("hours are too many; give fewer")
        if self.arrivals.kind != "trace" and self.duration_s / self.interval > MOST_REQUESTS:
            raise ValueError(
                f"an interval of {self.interval:g} s over {self.hours:g} hours is "
                f"{self.duration_s / self.interval:.2g} requests a run, of at most "
                f"{MOST_REQUESTS:.0e}; give a longer interval or fewer hours"
            )
        return self
