"""`fedspk gan train`: a corpus in, a folder with the generator, its manifest and sample sheets out.

The folder is made with the first checkpoint. It holds `config.json` (what is trained, so that
nothing else continues in it), `checkpoint.safetensors`, `history.json` (a look every 50 steps),
`sheets/`, and `generator.safetensors` with `generator.manifest.json` as they are by the last
checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedspk import __version__
from fedspk.cache import FeatureCache
from fedspk.cli import installed_versions
from fedspk.corpora import Corpus, examine, open_corpus
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.files import read_json, write_json
from fedspk.generator_description import NetworkConfig
from fedspk.parallel import one_torch_thread
from fedspk.progress import progress, warn
from fedspk.seeds import derive
from gan.diversity import Fault, Progress
from gan.generator_file import save_generator
from gan.manifest import write_draft
from gan.patches import PatchPlan, PublicSpeech, SpeakerPatches, public_speech
from gan.sampling import InventedVoices
from gan.sheets import sample_sheet, write_figure
from gan.training import GanTrainer, GanTraining

GENERATOR_FILE = "generator.safetensors"
_CONFIG, _CHECKPOINT, _HISTORY = "config.json", "checkpoint.safetensors", "history.json"
_SHEETS = "sheets"
_LOOK_EVERY = 50  # steps
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
    every: int = 250,
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
        resume: continue from the last checkpoint, on a CPU with the same outcome bit for bit.
        cache_root: folder of the feature cache; None takes the user's.
        workers: processes that compute features.
        device: where to train, as PyTorch names it.

    Raises:
        FedspkError: the corpus or the device will not do, `out` holds something else (nothing is
            written then), or training diverges.
    """
    _check_out(out, resume)
    _check_device(device)
    cache = FeatureCache(cache_root)
    examined = examine(open_corpus(corpus), cache, workers=workers, show_progress=True)
    _check_settings(out, recipe, examined)
    speech = public_speech(
        examined,
        recipe.front_end,
        recipe.plan,
        cache,
        seed=recipe.training.seed,
        workers=workers,
    )
    checkpoint = out / _CHECKPOINT
    with one_torch_thread():
        trainer = GanTrainer(
            speech.train,
            recipe.front_end,
            recipe.network,
            recipe.training,
            device,
            checkpoint if checkpoint.exists() else None,
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


def _check_device(name: str) -> None:
    """Compute something where the training is to run.

    Raises:
        FedspkError: nothing can be computed there.
    """
    try:
        float(torch.ones(1, device=torch.device(name)).sum())
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FedspkError(
            f"--device {name}: nothing can be computed there ({reason}); choose cpu, or cuda on a "
            "machine with an NVIDIA graphics card and a PyTorch that is made for it."
        ) from error


def _settings(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    return {"recipe": _plain(asdict(recipe)), "fingerprint": corpus.fingerprint}


def _check_settings(out: Path, recipe: Recipe, corpus: Corpus) -> None:
    path = out / _CONFIG
    if path.exists() and read_json(path) != _settings(recipe, corpus):
        raise FedspkError(
            f"{out}: was started with another corpus or other settings; give the same, or another "
            "--out."
        )


def _train(
    trainer: GanTrainer, speech: PublicSpeech, recipe: Recipe, out: Path, every: int
) -> None:
    steps = trainer.config.steps
    with progress(total=steps, description="Training the generator", unit="step") as bar:
        bar.update(trainer.step)
        while trainer.step < steps:
            known = trainer.history[-1].faults if trainer.history else frozenset()
            trainer.run(min(n - trainer.step % n for n in (_LOOK_EVERY, every)), bar.update)
            reached = trainer.progress()
            bar.set_postfix_str(
                f"diversity {reached.diversity:.2f}, identity {reached.identity:.2f}", refresh=False
            )
            for fault in (each for each in Fault if each in reached.faults - known):
                _warn_of(fault, reached, out)
            if trainer.step % every == 0 or trainer.step == steps:
                _write(trainer, speech, recipe, reached, out)


def _warn_of(fault: Fault, reached: Progress, out: Path) -> None:
    warn(
        f"{reached.explain(fault)}. Look at {out / _SHEETS}; if it stays so, train anew with a "
        "lower --learning-rate or on more speakers."
    )


def _write(
    trainer: GanTrainer, speech: PublicSpeech, recipe: Recipe, reached: Progress, out: Path
) -> None:
    """Write everything that there is by now; the checkpoint last, which remembers the rest."""
    if not (out / _CONFIG).exists():
        write_json(out / _CONFIG, _settings(recipe, speech.corpus))
    _show(trainer, speech.train, out / _SHEETS / f"step-{trainer.step:06d}.png")
    _keep(trainer, speech, recipe, reached, out / GENERATOR_FILE)
    write_json(out / _HISTORY, [asdict(point) for point in trainer.history])
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
        # The steps that were made: so many, and nothing else, make this generator again.
        "training": {**asdict(recipe.training), "steps": reached.step},
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
