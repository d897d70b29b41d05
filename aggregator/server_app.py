"""The aggregator's Flower ServerApp: read the run's configuration, run the rounds, say how it went.

The Flower run configuration (`--run-config`, `[tool.flwr.app.config]`) has these keys; empty means
the default:

config: a JSON file of `RunConfig` fields; default: a small run on speakers of the corpus.
rounds: overrides the configuration's when above 0.
store: the folder of models by content hash; checkpoints: the folder of the run's checkpoint, in
    which a run continues; default: this run's own below the user's cache.
init: hash of a model in the store to start from; default: the run's freshly drawn one.
register: the file of the devices' public keys; default: `register.json` in the folder `devices`,
    and without that in the one where a simulation's nodes draw their data.
corpus, devices, device: where the devices find their data (see `clients.client_app`).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig
from fedspk.run_folder import PUBLIC_SPEAKERS, run_folder

if TYPE_CHECKING:
    from aggregator.record import RoundRecord
    from aggregator.secure_sums import SumStage

app = ServerApp()
_log = logging.getLogger("flwr")

_SMALL_RUN = RunConfig(
    head_kind="softmax",
    public=PUBLIC_SPEAKERS,
    batch_size=32,
    crop_frames=200,
    final_learning_rate=1e-3,
    local_epochs=2,
    rounds=3,
)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation on the devices that the grid reaches."""
    from aggregator.federation import run_federation
    from fedspk.run_model import initial_vector
    from fedspk.weights import WeightStore

    config = _run_config(context)
    store = WeightStore(_folder(context, "store"))
    initial = str(context.run_config.get("init") or "") or store.put(initial_vector(config))
    result = run_federation(
        grid,
        config,
        store,
        _folder(context, "checkpoints"),
        initial=initial,
        register=_register(context),
        workers=os.cpu_count() or 1,
        on_round=_report,
        on_stage=_report_stage,
    )
    model = store.path(result.model)
    _log.info("The best of %d rounds is %d: %s", result.rounds, result.best_round, model)
    publish = "It can be published" if result.verdict.published else "It must not be published"
    _log.info("%s: %s.", publish, result.verdict.reason)
    if result.privacy is not None:
        _log.info("%s", result.privacy)


def _run_config(context: Context) -> RunConfig:
    path = str(context.run_config.get("config") or "")
    if not path:
        config = _SMALL_RUN
    else:
        try:
            config = RunConfig.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    rounds = int(context.run_config.get("rounds") or 0)
    return config.changed(rounds=rounds) if rounds > 0 else config


def _folder(context: Context, name: str) -> Path:
    folder = str(context.run_config.get(name) or "")
    return Path(folder) if folder else run_folder(context.run_id) / name


def _register(context: Context) -> Path:
    given = str(context.run_config.get("register") or "")
    devices = str(context.run_config.get("devices") or run_folder(context.run_id) / "devices")
    return Path(given) if given else Path(devices) / "register.json"


def _report_stage(stage: SumStage) -> None:
    _log.info(
        "round %d, secure sum of %s, %s: %d of %d, %.1f s",
        stage.round,
        "updates" if stage.purpose == "train" else "validation losses",
        stage.name,
        stage.answered,
        stage.asked,
        stage.seconds,
    )


def _report(record: RoundRecord) -> None:
    if record.failure is not None:
        parts = [f"round {record.round} failed and left the model as it was: {record.failure}"]
    elif record.round == 0:
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
