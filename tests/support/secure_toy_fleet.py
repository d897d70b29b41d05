"""A fleet of toy devices (see `secure_toy_client`) in this process, and what runs should give."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from aggregator.checkpoint import load_checkpoint
from aggregator.federation import run_federation
from clients.enrolment import enrol_simulated_fleet
from fedspk.rounds import RunConfig
from fedspk.weights import WeightStore
from simulations.executors import SerialExecutor
from simulations.grid import LocalGrid

SIZE = 5
NAMES = [f"device-{index:04d}" for index in range(14)]
SECURE = {"norm": 100.0, "maximum_weight": 16}
STEP = 100 * 16 / 2**22  # of 24 bits, with room for the largest cohort of these tests


class CountingGrid(LocalGrid):
    """Counts the messages by type."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sent = Counter()

    def push_messages(self, messages):
        messages = list(messages)
        self.sent.update(message.metadata.message_type for message in messages)
        return super().push_messages(messages)


class Fleet:
    """Toy devices 0 .. n - 1 with their store and checkpoint folder."""

    def __init__(self, folder: Path, nodes: list[dict] | int, grid_type=CountingGrid) -> None:
        configs = [{}] * nodes if isinstance(nodes, int) else nodes
        self.folder = folder
        self.register = enrol_simulated_fleet(folder / "fleet", NAMES[: len(configs)])
        self.store = WeightStore(folder / "store")
        self.initial = self.store.put(np.linspace(-1, 1, SIZE).astype(np.float32))
        self.grid = grid_type(
            "secure_toy_client:app",
            [{"folder": str(folder / "fleet"), **config} for config in configs],
            SerialExecutor(),
            run_config={"store": str(folder / "store")},
        )

    def run(self, on_round=None, on_stage=None, secure=SECURE, **changes):
        self.config = RunConfig().changed(secure=secure, **changes)
        return run_federation(
            self.grid,
            self.config,
            self.store,
            self.folder / "run",
            initial=self.initial,
            register=self.register,
            on_round=on_round,
            on_stage=on_stage,
        )

    def state(self):
        return load_checkpoint(self.folder / "run", self.config, self.initial)

    def model(self, result):
        return np.array(self.store.get(result.last_model), np.float64)


def expected(cohorts, rate=1.0, weights=None):
    """The model of Algorithm 1 by hand, one cohort of device numbers a round."""
    model = np.linspace(-1, 1, SIZE)
    for devices in cohorts:
        targets = np.array(devices, np.float64)
        shares = targets + 1 if weights is None else np.array(weights)
        deltas = 0.5 * (targets[:, None] - model)
        model = model + rate * (shares[:, None] * deltas).sum(0) / shares.sum()
    return model
