"""Flower's FedAvg, training only; writes when each round ended."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    ends: list[float] = []

    def note_time(_round: int, _arrays: ArrayRecord) -> None:
        ends.append(time.perf_counter())

    size = int(context.run_config["parameters"])
    nodes = len(list(grid.get_node_ids()))
    strategy = FedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=nodes,
        min_available_nodes=nodes,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(size, np.float32)]),
        num_rounds=int(context.run_config["rounds"]),
        evaluate_fn=note_time,
    )
    Path(str(context.run_config["times"])).write_text(json.dumps(ends))
