"""`fedspk pretrain`: version 1 of a fleet's model, trained on public speech alone."""

from __future__ import annotations

from pathlib import Path

from fedspk import __version__
from fedspk.cache import FeatureCache
from fedspk.cli import installed_versions
from fedspk.corpora import examine, open_corpus, require_speakers
from fedspk.engine import HEARD, save_described
from fedspk.errors import FedspkError
from fedspk.files import write_json
from simulations.executors import usable_cpus
from simulations.federated.cast import all_public
from simulations.federated.central import pretrain
from simulations.federated.config import ExperimentConfig
from simulations.federated.plan import make_public_rows
from simulations.federated.results import Json
from simulations.federated.start import describe

_MIN_SPEAKERS = 4


def pretrain_model(
    config: ExperimentConfig, out: Path, *, cache_root: Path | None, workers: int | None
) -> Json:
    """Train on every speaker of the corpus and write the model and, beside it, how it was made.

    Returns:
        What `<out>.json` holds: speakers, steps, seconds, losses, hash, config, versions, seed,
        fingerprint of the corpus.

    Raises:
        FedspkError: the corpus has too few speakers or cannot be read.
    """
    if out.suffix != ".safetensors":
        raise FedspkError(f"{out}: give --out a file name that ends in .safetensors.")
    write_json(out.with_suffix(".json"), {"config": config.model_dump(mode="json")})
    cache = FeatureCache(cache_root)
    used = workers or usable_cpus()
    corpus = examine(open_corpus(config.corpus), cache, workers=used, show_progress=True)
    require_speakers(corpus, _MIN_SPEAKERS, 1)
    rows = make_public_rows(corpus, all_public(corpus, config.seed), config, cache, used)
    run = config.arm("initial", config.impostors[0], rows.classes)
    model, result = pretrain(rows, run, config.pretrain)
    made = {
        "speakers": len(corpus.speakers),
        "utterances": len(corpus.utterances),
        "skipped": corpus.skip_reasons,
        "fingerprint": corpus.fingerprint,
        "steps": result.steps,
        "seconds": result.seconds,
        "training_loss": result.training_loss,
        "validation_loss": result.best_validation_loss,
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "versions": installed_versions(),
    }
    metadata = {
        "fedspk.made_by": "pretrain",
        "fedspk.version": __version__,
        "fedspk.config": config.model_dump_json(),
        HEARD: " ".join(sorted(utterance.mark for utterance in corpus.utterances)),
    }
    made["hash"] = save_described(out, model, describe(config, run), metadata)
    write_json(out.with_suffix(".json"), made)
    return made
