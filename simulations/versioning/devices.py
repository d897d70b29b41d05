"""Models on the devices: no network on the way of a request, a download for every new model."""

from __future__ import annotations

import math

import numpy as np

from simulations.versioning.config import VersioningConfig
from simulations.versioning.occupancy import BINS
from simulations.versioning.result import RunResult
from simulations.versioning.strategies import Strategy
from simulations.versioning.workload import Floats, draw_phases, draw_workload

_MBIT = 1e6


def simulate_devices(config: VersioningConfig, strategy: Strategy, run: int) -> RunResult:
    """Simulate one run of a strategy whose models run on the users' devices.

    A device that finds a new model downloads it and renews its profile from the enrolment audio
    that it holds. Without `keeps_model` it has only the new model meanwhile and requests wait;
    with it the old model serves them. A device serves one request at a time. `downtime_s` is the
    mean over devices of the time in which they cannot answer. There are no workers' figures.

    Raises:
        FedspkError: the trace cannot be used.
    """
    load = draw_workload(config, run)
    factor = config.devices.real_time_factor
    renewal_s = config.enrolment.audio_s * factor
    begin, done = _renewals(config, draw_phases(config, run), renewal_s)

    began, end = np.empty(len(load.sent_s)), np.empty(len(load.sent_s))
    renewals = np.zeros(len(load.sent_s), np.int64)
    free = np.zeros(config.users)
    seen = np.zeros(config.users, np.int64)
    foreground = 0
    for i, (sent, user, audio_s) in enumerate(
        zip(load.sent_s, load.user, load.audio_s, strict=True)
    ):
        start = max(sent, free[user])
        while seen[user] < begin.shape[1] and begin[user, seen[user]] <= start:
            if not strategy.keeps_model and start < done[user, seen[user]]:
                start = done[user, seen[user]]
                foreground += 1
            renewals[i] += 1
            seen[user] += 1
        began[i] = start
        free[user] = end[i] = start + audio_s * factor
    within = begin < config.duration_s
    # Renewals that no later request of the user could carry belong to nobody's request.
    unseen = int(within.sum()) - int(renewals.sum())
    audio_s = load.audio_s + config.enrolment.audio_s * (renewals + unseen / len(end))
    profile = (done[load.user] <= began[:, None]).sum(axis=1)
    installed = done if strategy.keeps_model else begin
    model = (installed[load.user] <= began[:, None]).sum(axis=1)
    down = np.minimum(done, config.duration_s) - np.minimum(begin, config.duration_s)
    last = float(done[:, -1].max()) if done.size else math.inf
    return RunResult(
        requests=len(end),
        failed=0,
        sent_s=load.sent_s,
        latency_s=end - load.sent_s,
        flops=audio_s * (config.worker.gflops_per_second * 1e9),
        backward_bounces=0,
        forward_bounces=0,
        cross_version_scorings=int((model != profile).sum()),
        reenrolments_foreground=foreground,
        reenrolments_background=int(within.sum()) - foreground,
        downtime_s=0.0 if strategy.keeps_model else float(down[within].sum()) / config.users,
        consistent_after_s=last - config.rollout.start_s if last < config.duration_s else None,
        worker_requests=np.zeros(config.workers, np.int64),
        utilisation=np.zeros((config.workers, BINS)),
        queue_length=np.zeros((config.workers, BINS)),
    )


def _renewals(config: VersioningConfig, phase: Floats, renewal_s: float) -> tuple[Floats, Floats]:
    """Return when each device begins and ends renewing its profile (users, models)."""
    rollout = config.rollout
    released = [rollout.start_s]
    if rollout.second_after_s is not None:
        released.append(rollout.start_s + rollout.second_after_s)
    if rollout.rollback_after_s is not None:
        back = rollout.start_s + rollout.rollback_after_s
        released = [*(at for at in released if at < back), back]
    download_s = config.devices.model_megabytes * 8e6 / (config.links.client_mbit_per_s * _MBIT)
    every = config.devices.handshake_s
    begin: list[Floats] = []
    for at in sorted(released):
        asked = phase + np.maximum(np.ceil((at - phase) / every), 0.0) * every
        ready = asked + config.links.client_latency_s + download_s
        begin.append(np.maximum(ready, begin[-1] + renewal_s) if begin else ready)
    begins = np.stack(begin, axis=1)
    return begins, begins + renewal_s
