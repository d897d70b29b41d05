"""What the users do in one run: when they speak, who speaks, and for how long.

Everything is drawn before the simulation starts, from a stream for each purpose, so all
strategies see the same requests on the same network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedspk.errors import FedspkError
from fedspk.seeds import numpy_generator
from simulations.versioning.config import Audio, UserRates, VersioningConfig

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_FEW_USERS = 50
_DIURNAL_GRID = 4096  # points of the expected number of requests; a straight line between two


@dataclass(frozen=True)
class Workload:
    """The requests of a run in order of sending, each array (requests,).

    sent_s: when. user: whose. audio_s: how much audio.
    network: factor on the time on the client's link.
    first, second: uniform numbers that pick the worker, and another one where that is needed.
    """

    sent_s: Floats
    user: Ints
    audio_s: Floats
    network: Floats
    first: Floats
    second: Floats


def draw_workload(config: VersioningConfig, run: int) -> Workload:
    """Draw the requests of one run.

    Raises:
        FedspkError: the trace cannot be read, or there is not one request.
    """
    trace = _read_trace(config.arrivals.trace) if config.arrivals.trace else None
    if trace is not None:
        trace = trace[trace[:, 0] < config.duration_s]
        sent = np.ascontiguousarray(trace[:, 0])
    else:
        sent = draw_arrivals(config, run)
    count = len(sent)
    if not count:
        raise FedspkError(
            "arrivals: there is not one request in the run; give more hours or a shorter interval."
        )
    if trace is not None and trace.shape[1] > 1:
        user = trace[:, 1].astype(np.int64)
        if user.min() < 0 or user.max() >= config.users:
            raise FedspkError(
                f"{config.arrivals.trace}: names users outside 0 to {config.users - 1}; "
                "set users to their number."
            )
    else:
        user = draw_users(config, run, count)
    if trace is not None and trace.shape[1] > 2:
        audio = np.ascontiguousarray(trace[:, 2])
    else:
        audio = _draw_audio(config.audio, count, config.seed, run)
    choice = numpy_generator(config.seed, "versioning", "workers", run).random((2, count))
    jitter = config.links.jitter
    network = np.ones(count)
    if jitter:
        noise = numpy_generator(config.seed, "versioning", "network", run).standard_normal(count)
        network = np.maximum(1.0 + jitter * noise, 0.0)
    return Workload(sent, user, audio, network, choice[0], choice[1])


def draw_arrivals(config: VersioningConfig, run: int) -> Floats:
    """Draw when requests are sent (requests,), ascending, within the run."""
    end, interval = config.duration_s, config.interval
    if config.arrivals.kind == "regular":
        return np.arange(math.ceil(end / interval), dtype=np.float64) * interval
    rng = numpy_generator(config.seed, "versioning", "arrivals", run)
    expected = end / interval
    if config.arrivals.kind == "poisson":
        return _poisson(rng, expected) * interval
    # Diurnal: Poisson in the expected number of requests, which is read back as time.
    turn = 2 * math.pi / (config.arrivals.period_hours * 3600.0)
    grid = np.linspace(0.0, end, _DIURNAL_GRID)
    mean = (grid + config.arrivals.swing * (1 - np.cos(turn * grid)) / turn) / interval
    return np.interp(_poisson(rng, float(mean[-1])), mean, grid)


def _poisson(rng: np.random.Generator, end: float) -> Floats:
    """Draw the points of a Poisson process of rate 1 from 0 to `end`."""
    points: Floats = np.sort(rng.random(rng.poisson(end))) * end
    return points


def draw_users(config: VersioningConfig, run: int, count: int) -> Ints:
    """Draw whose each request is (count,)."""
    if config.users == 1:
        return np.zeros(count, np.int64)
    uniform = numpy_generator(config.seed, "versioning", "users", run).random(count)
    shares, guide = _cumulative(config.user_rates, config.users)
    return np.searchsorted(shares[:guide], uniform, side="right")


def number_speakers(user: Ints, users: int) -> tuple[Ints, int]:
    """Number the users who speak from 0 on; return whose each request is, and how many to keep.

    Those who never speak fare alike, so one stands for them all, and what a run costs does not
    depend on their number.

    >>> number_speakers(np.array([90, 7, 90]), 100)
    (array([1, 0, 1]), 3)
    """
    if users <= _FEW_USERS:
        return user, users
    if users > 20 * len(user):
        speakers, numbered = np.unique(user, return_inverse=True)
        return numbered, len(speakers) + 1
    number = np.zeros(users, np.int64)  # quicker than to sort
    number[user] = 1
    np.cumsum(number, out=number)
    return number[user] - 1, min(int(number[-1]) + 1, users)


def draw_phases(config: VersioningConfig, run: int) -> Floats:
    """Draw when each user's device asks for the version for the first time (users,)."""
    rng = numpy_generator(config.seed, "versioning", "devices", run)
    return rng.random(config.users) * config.devices.handshake_s


@lru_cache(maxsize=8)
def _cumulative(rates: UserRates, users: int) -> tuple[Floats, int]:
    """Return the cumulative shares of the users' rates, and how many of them are below 1."""
    index = np.arange(users, dtype=np.float64)
    match rates.kind:
        case "exponential":
            weights = rates.decay**index
        case "zipf":
            weights = (index + 1.0) ** -rates.exponent
        case "linear":
            weights = index + 1.0
        case "uniform":
            weights = np.ones(users)
    shares = np.cumsum(weights)
    shares /= shares[-1]
    return shares, int(np.searchsorted(shares, 1.0)) + 1


def _draw_audio(audio: Audio, count: int, seed: int, run: int) -> Floats:
    if audio.kind == "fixed":
        return np.full(count, audio.seconds)
    rng = numpy_generator(seed, "versioning", "audio", run)
    match audio.kind:
        case "lognormal":
            variance = math.log1p(audio.spread**2)
            return audio.seconds * rng.lognormal(-variance / 2, math.sqrt(variance), count)
        case "uniform":
            half = min(math.sqrt(3.0) * audio.spread, 1.0)
            return audio.seconds * rng.uniform(1 - half, 1 + half, count)
        case "exponential":
            return rng.exponential(audio.seconds, count)


@lru_cache(maxsize=2)
def _read_trace(file: Path) -> Floats:
    """Read rows of seconds and perhaps user and seconds of audio (requests, 1 to 3)."""
    try:
        rows = np.loadtxt(file, delimiter=",", ndmin=2, dtype=np.float64)
    except OSError as error:
        raise FedspkError(f"{file}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise FedspkError(
            f"{file}: is not a trace; each line must be seconds[,user[,seconds of audio]]."
        ) from error
    if not rows.size or not 1 <= rows.shape[1] <= 3 or not np.isfinite(rows).all():
        raise FedspkError(f"{file}: is not a trace; each line must be seconds[,user[,seconds]].")
    if rows[0, 0] < 0 or (np.diff(rows[:, 0]) < 0).any():
        raise FedspkError(f"{file}: times must ascend from 0; sort the lines.")
    if rows.shape[1] > 2 and (rows[:, 2] <= 0).any():
        raise FedspkError(f"{file}: seconds of audio must be above 0.")
    return rows
