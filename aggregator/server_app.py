"""The aggregator's Flower ServerApp: read the run's configuration, run the rounds, say how it went.

The Flower run configuration (`--run-config`, `[tool.flwr.app.config]`) has these keys; empty means
the default:

config: a JSON file of `RunConfig` fields; default: a small run on speakers of the corpus.
rounds: overrides the configuration's when above 0.
store: the folder of models by content hash; checkpoints: the folder of the run's checkpoint, in
    which a run continues; default: this run's own below the user's cache.
init: hash of a model in the store to start from, or, with a main server, the channel that names it
    (training, canary or stable); default: the run's freshly drawn one. In a run with the impostors
    "gan" its classes are then trained on the invented speakers.
generator: file of the impostor generator that the run names; a main server's is fetched.
register: the file of the devices' public keys; default: `register.json` in the folder `devices`,
    and without that in the one where a simulation's nodes draw their data.
corpus, devices, device: where the devices find their data (see `clients.client_app`).

With a main server every round's model is published in its channel "training" before a device is
asked to use it, and the run's best model at the end (see `aggregator.handover`):

server: the main server's address, with server-root: the file of its root metadata; server-key: of
    this party's private key; server-token-file: of an operator's token with the role aggregator.
server-passphrase-file: of the key's passphrase; server-ca: certificates to trust in place of the
    system's.
server-channel: which channel names the best model, training (the default) or canary.
evaluation-trials: a trial list on which the best model is evaluated; evaluation-root: the folder of
    its audio; default: the list's.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedspk.errors import FedspkError
from fedspk.rounds import RunConfig
from fedspk.run_folder import PUBLIC_SPEAKERS, run_folder

if TYPE_CHECKING:
    from aggregator.handover import Evaluate, Handover
    from aggregator.record import RoundRecord
    from aggregator.secure_sums import SumStage
    from fedspk.weights import WeightStore

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
    from fedspk.files import read_json, write_json
    from fedspk.weights import WeightStore

    config = _run_config(context)
    store = WeightStore(_folder(context, "store"))
    handover = _handover(context, config, store)
    initial = _initial(context, config, store, handover)
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
        offer=handover.offer if handover else None,
    )
    model = store.path(result.model)
    _log.info("The best of %d rounds is %d: %s", result.rounds, result.best_round, model)
    publish = "It can be published" if result.verdict.published else "It must not be published"
    _log.info("%s: %s.", publish, result.verdict.reason)
    if result.privacy is not None:
        _log.info("%s", result.privacy)
    if handover and result.verdict.published:
        # Started again, a finished run must not undo what was published since.
        note, done = _folder(context, "checkpoints") / "published.json", result.model
        if not note.exists() or read_json(note) != {"model": done, "rounds": result.rounds}:
            handover.finish(done, result.history[result.best_round], result.budget)
            write_json(note, {"model": done, "rounds": result.rounds})


def _handover(context: Context, config: RunConfig, store: WeightStore) -> Handover | None:
    """Return the way to the main server, if the run has one."""
    address = _text(context, "server")
    if not address:
        return None
    from aggregator.handover import Handover
    from aggregator.publisher import MainServer

    server = MainServer.open(
        address,
        _folder(context, "checkpoints") / "versions",
        root=_file(context, "server-root"),
        key=_file(context, "server-key"),
        token=_file(context, "server-token-file"),
        passphrase=_optional_file(context, "server-passphrase-file"),
        ca=_optional_file(context, "server-ca"),
    )
    channel = _text(context, "server-channel") or "training"
    return Handover(server, config, store, channel, _evaluation(context, config))


def _initial(
    context: Context, config: RunConfig, store: WeightStore, handover: Handover | None
) -> str:
    """Return the hash of the model to start from; a run that goes on starts from the same."""
    from fedspk.files import read_json, write_json
    from fedspk.release import CHANNELS
    from fedspk.run_model import initial_vector

    given = _text(context, "init")
    channel = next((name for name in CHANNELS if name == given), None)
    if channel is None and config.impostors != "gan":
        return given or store.put(initial_vector(config))
    note = _folder(context, "checkpoints") / "initial.json"
    if not note.exists():
        if channel is None:
            model = given or store.put(initial_vector(config))
        elif handover is None:
            raise FedspkError(f"init is {given!r}, a channel, but the run has no server; name it.")
        else:
            model = handover.start(channel)
        if config.impostors == "gan":
            model = _with_invented_classes(context, config, store, handover, model)
        write_json(note, {"init": given, "model": model})
    noted = read_json(note)
    if noted["init"] != given:
        raise FedspkError(
            f"init is {given!r}, but {note} says that this run started from "
            f"{noted['init']!r}; name another folder of checkpoints to start afresh."
        )
    return str(noted["model"])


def _with_invented_classes(
    context: Context,
    config: RunConfig,
    store: WeightStore,
    handover: Handover | None,
    model: str,
) -> str:
    """Return the hash of a model whose classes know the run's invented speakers."""
    from tempfile import TemporaryDirectory

    from gan.invented import with_invented_classes

    with TemporaryDirectory() as folder:
        generator = _optional_file(context, "generator")
        if handover is not None:
            generator = Path(folder) / "generator.safetensors"
            handover.fetch_generator(generator)
        elif generator is None:
            raise FedspkError(
                "the run's impostors are 'gan', but it has neither a generator nor a server that "
                "publishes it; name the file."
            )
        vector = with_invented_classes(store.get(model), config, generator)
    started = store.put(vector)
    store.sync([started])
    return started


def _evaluation(context: Context, config: RunConfig) -> Evaluate | None:
    """Return what evaluates a model file on the run's trial list, if it has one."""
    listed = _optional_file(context, "evaluation-trials")
    if listed is None:
        return None
    from fedspk.engine import SpeechEngine
    from fedspk.evaluation import score_trials
    from fedspk.model_card import card_of_trials
    from fedspk.trials import read_trials

    trials, root = read_trials(listed), _optional_file(context, "evaluation-root") or listed.parent

    def evaluate(model: Path) -> dict[str, Any]:
        target, nontarget = score_trials(trials, SpeechEngine.load(model), root)
        return card_of_trials(trials, root, target, nontarget, seed=config.seed)

    return evaluate


def _text(context: Context, name: str) -> str:
    return str(context.run_config.get(name) or "")


def _file(context: Context, name: str) -> Path:
    path = _optional_file(context, name)
    if path is None:
        raise FedspkError(f"The run has a server but no {name}; name the file.")
    return path


def _optional_file(context: Context, name: str) -> Path | None:
    text = _text(context, name)
    return Path(text) if text else None


def _run_config(context: Context) -> RunConfig:
    path = _text(context, "config")
    if not path:
        config = _SMALL_RUN
    else:
        try:
            config = RunConfig.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error
    if config.impostors == "gan" and not (config.generator and config.public):
        raise FedspkError(
            f"{path}: impostors is 'gan'; set generator to the SHA-256 of the generator's file and "
            "public to the number of invented speakers."
        )
    rounds = int(context.run_config.get("rounds") or 0)
    return config.changed(rounds=rounds) if rounds > 0 else config


def _folder(context: Context, name: str) -> Path:
    return _optional_file(context, name) or run_folder(context.run_id) / name


def _register(context: Context) -> Path:
    given = _optional_file(context, "register")
    return given or _folder(context, "devices") / "register.json"


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
