"""`fedspk gan train`: a corpus in, a folder with the generator, its manifest and sample sheets out.

The folder holds `config.json` (what is trained, so that nothing else continues in it),
`checkpoint.safetensors`, `history.json`, `sheets/`, and `generator.safetensors` with
`generator.manifest.json` as they are by the last checkpoint.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedspk import __version__
from fedspk.cache import FeatureCache
from fedspk.cli import installed_versions
from fedspk.corpora import examine, open_corpus
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.files import read_json, write_json
from fedspk.generator_description import NetworkConfig
from fedspk.parallel import one_torch_thread
from fedspk.progress import progress
from fedspk.seeds import derive
from gan.generator_file import save_generator
from gan.manifest import write_draft
from gan.patches import PatchPlan, PublicSpeech, SpeakerPatches, public_speech
from gan.sampling import InventedVoices
from gan.sheets import sample_sheet, write_figure
from gan.training import COLLAPSED, GanTrainer, GanTraining, Progress

GENERATOR_FILE = "generator.safetensors"
_CONFIG, _CHECKPOINT, _HISTORY = "config.json", "checkpoint.safetensors", "history.json"
_SHOWN_SPEAKERS, _SHOWN_TAKES = 4, 4


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which generator comes out of a corpus."""

    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    plan: PatchPlan = field(default_factory=PatchPlan)
    training: GanTraining = field(default_factory=GanTraining)


def train_generator(
    corpus: str,
    out: Path,
    recipe: Recipe,
    *,
    every: int = 500,
    resume: bool = False,
    cache_root: Path | None = None,
    workers: int = 1,
    device: str = "cpu",
) -> Path:
    """Train a generator and return its file, `out/generator.safetensors`.

    Args:
        corpus: folder of public speech, or `synthetic`.
        out: a new or empty folder, or with `resume` that of an interrupted training.
        recipe: what to train.
        every: steps between checkpoints, each with a sample sheet.
        resume: continue from the last checkpoint, with the same outcome on the same machine.
        cache_root: folder of the feature cache; None takes the user's.
        workers: processes that compute features.
        device: where to train.

    Raises:
        FedspkError: the corpus will not do, `out` holds something else, or training diverges.
    """
    cache = FeatureCache(cache_root)
    _check_out(out, resume)
    examined = examine(open_corpus(corpus), cache, workers=workers, show_progress=True)
    _claim(out, recipe, examined.fingerprint)
    speech = public_speech(
        examined,
        recipe.front_end,
        recipe.plan,
        cache,
        seed=recipe.training.seed,
        workers=workers,
    )
    with one_torch_thread():
        trainer = GanTrainer(
            speech.train, recipe.front_end, recipe.network, recipe.training, device
        )
        _train(trainer, speech, recipe, out, every)
    return out / GENERATOR_FILE


def _check_out(out: Path, resume: bool) -> None:
    if (out / _CONFIG).exists():
        if not resume:
            raise FedspkError(
                f"{out}: already holds a training; add --resume to continue it or give another "
                "--out."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FedspkError(f"{out}: is not an empty folder and holds no training; give another.")


def _claim(out: Path, recipe: Recipe, fingerprint: str) -> None:
    """Write down what is trained in `out`, or make sure that it is this very training."""
    wanted = {"recipe": _plain(asdict(recipe)), "fingerprint": fingerprint}
    path = out / _CONFIG
    if not path.exists():
        write_json(path, wanted)
    elif read_json(path) != wanted:
        raise FedspkError(
            f"{out}: was started with another corpus or other settings; give the same, or another "
            "--out."
        )


def _train(
    trainer: GanTrainer, speech: PublicSpeech, recipe: Recipe, out: Path, every: int
) -> None:
    history: list[dict[str, Any]] = []
    if (out / _CHECKPOINT).exists():
        trainer.restore(out / _CHECKPOINT)
        history = [entry for entry in read_json(out / _HISTORY) if entry["step"] <= trainer.step]
    steps = trainer.config.steps
    with progress(total=steps, description="Training the generator", unit="step") as bar:
        bar.update(trainer.step)
        while trainer.step < steps:
            trainer.run(every - trainer.step % every, bar.update)
            reached = trainer.progress()
            bar.set_postfix_str(
                f"diversity {reached.diversity:.2f}, identity {reached.identity:.2f}", refresh=False
            )
            if reached.has_collapsed and reached.step >= 2 * every:
                _warn(reached)
            history.append(asdict(reached))
            _show(trainer, speech.train, out / "sheets" / f"step-{trainer.step:06d}.png")
            _keep(trainer, speech, recipe, reached, out / GENERATOR_FILE)
            write_json(out / _HISTORY, history)
            trainer.save(out / _CHECKPOINT)


def _keep(
    trainer: GanTrainer, speech: PublicSpeech, recipe: Recipe, reached: Progress, path: Path
) -> None:
    """Write the generator as it is by now, and the draft of its manifest."""
    corpus = speech.corpus
    origin = {
        "made_by": "fedspk gan train",
        "version": __version__,
        "corpus_name": corpus.name,
        "held_out_speakers": len(speech.held_out.speakers),
        "heard": sorted(utterance.mark for utterance in speech.heard),
        "plan": _plain(asdict(recipe.plan)),
        "training": asdict(recipe.training),
        "reached": asdict(reached),
        "versions": installed_versions(),
    }
    speakers = len(corpus.speakers) - len(speech.held_out.speakers)
    save_generator(
        path,
        trainer.average,
        corpus=corpus.fingerprint,
        speakers=speakers,
        origin=origin,
    )
    write_draft(path, path.with_suffix(".manifest.json"))


def _warn(reached: Progress) -> None:
    warnings.warn(
        f"step {reached.step}: made voices differ by {reached.diversity:.0%} of what real ones do "
        f"(below {COLLAPSED:.0%}): the generator may be collapsing; look at its sample sheets, "
        "and lower the learning rate if it stays so.",
        stacklevel=2,
    )


def _show(trainer: GanTrainer, patches: SpeakerPatches, path: Path) -> None:
    """Draw the same invented speakers every time, beside the same real ones."""
    voices = InventedVoices(trainer.average, derive(trainer.config.seed, "sheet"))
    speakers = np.repeat(np.arange(_SHOWN_SPEAKERS), _SHOWN_TAKES)
    takes = np.tile(np.arange(_SHOWN_TAKES), _SHOWN_SPEAKERS)
    made = voices.patches(speakers.tolist(), takes.tolist())
    apart = max(1, len(patches.speakers) // _SHOWN_SPEAKERS)
    real = [
        patches.table.gather([rows[i % len(rows)] for i in range(_SHOWN_TAKES)])
        for rows in patches.speakers[::apart][:_SHOWN_SPEAKERS]
    ]
    sheet = sample_sheet(
        made.view(_SHOWN_SPEAKERS, _SHOWN_TAKES, *made.shape[1:]),
        torch.stack(real),
        f"step {trainer.step}",
    )
    write_figure(path, sheet)


def _plain(value: Any) -> Any:
    """Return what JSON gives back: lists where there were tuples."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
