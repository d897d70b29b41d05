"""The aggregator's Flower ServerApp: read the run's configuration, run the rounds, say how it went.

The Flower run configuration (`--run-config`, `[tool.flwr.app.config]`) has these keys; empty means
the default:

config: a JSON file of `RunConfig` fields; rounds: overrides its rounds when above 0.
store: the folder of models by content hash; checkpoints: the folder of the run's checkpoint,
    in which a run continues.
init: hash of a model in the store to start from; default: the run's freshly drawn one.
devices, device: where the devices find their data (see `clients.client_app`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig

if TYPE_CHECKING:
    from aggregator.checkpoint import RoundRecord

app = ServerApp()
_log = logging.getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation on the devices that the grid reaches."""
    from aggregator.federation import run_federation
    from fedspk.run_model import initial_vector
    from fedspk.weights import WeightStore

    config = _run_config(context)
    store = WeightStore(Path(_setting(context, "store")))
    initial = str(context.run_config.get("init") or "") or store.put(initial_vector(config))
    result = run_federation(
        grid,
        config,
        store,
        Path(_setting(context, "checkpoints")),
        initial=initial,
        on_round=_report,
    )
    _log.info("Best round %d of %d: model %s", result.best_round, result.rounds, result.model)


def _run_config(context: Context) -> RunConfig:
    path = str(context.run_config.get("config") or "")
    if not path:
        config = RunConfig()
    else:
        try:
            config = RunConfig.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    rounds = int(context.run_config.get("rounds") or 0)
    return config.changed(rounds=rounds) if rounds > 0 else config


def _setting(context: Context, name: str) -> str:
    value = str(context.run_config.get(name) or "")
    if not value:
        raise FedspkError(f"The run configuration has no {name}; set it to a folder.")
    return value


def _report(record: RoundRecord) -> None:
    if record.round == 0:
        parts = ["round 0: the initial model"]
    else:
        parts = [f"round {record.round}: {record.answered} of {record.asked} devices trained"]
    if record.train_loss is not None:
        parts.append(f"training loss {record.train_loss:.4f}")
    if record.validation_loss is not None:
        parts.append(f"validation loss {record.validation_loss:.4f}")
    if record.failures:
        parts.append(f"{len(record.failures)} failed, the first: {record.failures[0]}")
    _log.info(", ".join(parts))
