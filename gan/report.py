"""`fedspk gan report`: a page on one generator: how real, how varied, what it has by heart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedspk.cache import FeatureCache
from fedspk.cli import installed_versions
from fedspk.corpora import examine, open_corpus
from fedspk.engine import SpeechEngine
from fedspk.errors import FedspkError
from fedspk.features import normalise
from fedspk.files import read_json, write_json, write_text
from fedspk.page import page_template, show_figure
from fedspk.parallel import one_torch_thread
from fedspk.progress import progress
from fedspk.seeds import derive
from gan import figures
from gan.generator_file import check_front_end, generator_origin, load_generator
from gan.manifest import write_draft
from gan.patches import PatchPlan, SpeakerPatches, public_speech
from gan.quality import (
    detect,
    frechet_distance,
    memorisation,
    other_speaker_distances,
    same_speaker_distances,
    speaker_eer,
)
from gan.sampling import InventedVoices
from gan.sheets import sample_sheet, write_figure

Json: TypeAlias = dict[str, Any]
FloatArray: TypeAlias = npt.NDArray[np.float32]

_TAKES = 8
_VOICES = 200
_TRAIN_SHARE = 0.75  # of made voices, for the detector
_SHEET = 6, 4
_ARMS = ("individual", "federated", "federated-gan")


def run_report(
    generator: Path,
    corpus: str,
    encoder: Path,
    out: Path,
    *,
    experiment: Path | None = None,
    seed: int = 0,
    workers: int = 1,
    cache_root: Path | None = None,
) -> Json:
    """Measure a generator; write `report.json`, `report.html`, pictures and the manifest's draft.

    Args:
        generator: its file.
        corpus: the public speech that it was trained on: its held-out speakers are found again.
        encoder: a speaker model, best trained on other speech: it listens for everybody.
        out: folder for what is written.
        experiment: folder of a run with real and with invented impostors, for their usefulness.
        seed: of the voices and the detector.
        workers: processes that compute features.
        cache_root: folder of the feature cache; None takes the user's.

    Raises:
        FedspkError: a file is not what it should be, or generator, corpus and encoder do not go
            together.
    """
    made = load_generator(generator)
    engine = SpeechEngine.load(encoder)
    check_front_end(generator, made, engine.front_end)
    origin = generator_origin(generator)
    cache = FeatureCache(cache_root)
    examined = examine(open_corpus(corpus), cache, workers=workers, show_progress=True)
    if examined.fingerprint != origin["corpus"]:
        raise FedspkError(
            f"{corpus}: is not the speech that {generator} was trained on; give that corpus, so "
            "that held-out speakers are known."
        )
    speech = public_speech(
        examined,
        made.front_end,
        PatchPlan(_TAKES, (1.0,)),
        cache,
        seed=origin["training"]["seed"],
        workers=workers,
    )
    usefulness = _usefulness(experiment) if experiment else None
    with one_torch_thread():
        voices = _drawn(InventedVoices(made, derive(seed, "report")))
        train, held_out = (_patches(each) for each in (speech.train, speech.held_out))
        heard = [_embedded(engine, each) for each in (train, held_out, voices)]
        results: Json = {
            **_measured(heard, engine, made.front_end.normalise, seed),
            "detector": asdict(_detected(train, held_out, voices, seed)),
            "memorisation": asdict(memorisation(heard[0], heard[1], heard[2], seed)),
            "usefulness": usefulness,
            "generator": {"bytes": generator.stat().st_size, **origin},
            "encoder": engine.model_hash,
            "seed": seed,
            "versions": installed_versions(),
        }
    rows, takes = _SHEET
    sheet = sample_sheet(voices[:rows, :takes], held_out[:rows, :takes], "Invented and real")
    write_figure(out / "sheet.png", sheet)
    _write_page(out, results, heard)
    write_json(out / "report.json", results)
    write_draft(generator, out / "generator.manifest.json", _headline(results))
    return results


def verdict(results: Json) -> list[str]:
    """Return the results in plain sentences."""
    frechet, memory = results["frechet"], results["memorisation"]
    place = (frechet["made"] - frechet["floor"]) / (frechet["noise"] - frechet["floor"])
    sentences = [
        f"Invented voices lie {place:.0%} of the way from real speech (0 %) to noise (100 %).",
        f"A detector tells them from real ones with {100 * results['detector']['eer']:.1f} % "
        "errors (50 %: it cannot).",
        "They verify as a training speaker "
        + ("more often than" if has_memorised(results) else "no more often than")
        + f" held-out real speakers do: {memory['made_rate']:.1%} against "
        f"{memory['held_out_rate']:.1%} of the trials.",
    ]
    if results["usefulness"]:
        eer = {arm: found["mean_eer"] for arm, found in results["usefulness"]["arms"].items()}
        sentences.append(
            f"Devices that trained against them reach {eer['federated-gan']:.2f} % EER, against "
            f"real impostors {eer['federated']:.2f} %, alone {eer['individual']:.2f} %."
        )
    return sentences


def has_memorised(results: Json) -> bool:
    """Say whether made voices verify as training speakers significantly more often than others."""
    return bool(results["memorisation"]["difference_interval"][0] > 0)


def _drawn(voices: InventedVoices) -> Tensor:
    """Return patches (voices, takes, frames, bins)."""
    front_end = voices.generator.front_end
    made = torch.empty(_VOICES, _TAKES, front_end.frames, front_end.bins)
    for speaker in progress(range(_VOICES), description="Drawing voices", unit="voice"):
        made[speaker] = voices.patches([speaker] * _TAKES, range(_TAKES))
    return made


def _patches(speakers: SpeakerPatches) -> Tensor:
    return torch.stack([speakers.table.gather(rows) for rows in speakers.speakers])


def _embedded(engine: SpeechEngine, patches: Tensor) -> FloatArray:
    embeddings = engine.embed_features(patches.flatten(0, 1))
    shaped: FloatArray = embeddings.reshape(*patches.shape[:2], -1)
    return shaped


def _measured(heard: list[FloatArray], engine: SpeechEngine, how: Any, seed: int) -> Json:
    """Return Fréchet distances and diversity of (train, held-out, made) embeddings."""
    train, held_out, made = heard
    half = min(len(train) // 2, len(made))
    shape = (half * _TAKES, engine.front_end.frames, engine.front_end.bins)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(derive(seed, "noise")))
    flat = [part.reshape(-1, part.shape[2]) for part in (train[:half], train[half : 2 * half])]
    unit = [_lengthened(each) for each in (*flat, made[:half].reshape(-1, made.shape[2]))]
    unit_noise = _lengthened(engine.embed_features(normalise(noise, how)))
    return {
        "frechet": {
            "points": len(unit[0]),
            "floor": frechet_distance(unit[0], unit[1]),
            "made": frechet_distance(unit[0], unit[2]),
            "noise": frechet_distance(unit[0], unit_noise),
        },
        "diversity": {
            name: {
                "other_speakers": _quartiles(other_speaker_distances(each)),
                "same_speaker": _quartiles(same_speaker_distances(each)),
                "speaker_eer": speaker_eer(each),
            }
            for name, each in (("real", train), ("held_out", held_out), ("made", made))
        },
    }


def _detected(train: Tensor, held_out: Tensor, voices: Tensor, seed: int) -> Any:
    cut = round(_TRAIN_SHARE * len(voices))
    return detect(
        (train.flatten(0, 1), held_out.flatten(0, 1)),
        (voices[:cut].flatten(0, 1), voices[cut:].flatten(0, 1)),
        derive(seed, "detector"),
    )


def _lengthened(embeddings: FloatArray) -> FloatArray:
    """Return embeddings (N, D) of length 1: what a cosine sees of them."""
    unit: FloatArray = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit


def _quartiles(distances: FloatArray) -> list[float]:
    return [float(value) for value in np.quantile(distances, [0.25, 0.5, 0.75])]


def _usefulness(folder: Path) -> Json:
    """Return the mean EERs of the arms and the tests between them."""
    found = read_json(folder / "results.json")
    if missing := [arm for arm in _ARMS if arm not in found["summary"]]:
        raise FedspkError(
            f"{folder}: has no arm {missing[0]}; give a run of `fedspk simulate --impostors "
            "speech,gan`."
        )
    return {
        "arms": {
            arm: {name: found["summary"][arm][name] for name in ("mean_eer", "mean_eer_interval")}
            for arm in _ARMS
        },
        "tests": [
            row
            for row in found["tests"]
            if row["metric"] == "eer" and row["a"] in _ARMS and row["b"] == "federated-gan"
        ],
        "eer": {arm: [device["eer"][arm] for device in found["devices"]] for arm in _ARMS},
    }


def _headline(results: Json) -> dict[str, float | str]:
    """Return the figures that the manifest carries."""
    memory = results["memorisation"]
    return {
        "frechet_floor": results["frechet"]["floor"],
        "frechet_made": results["frechet"]["made"],
        "frechet_noise": results["frechet"]["noise"],
        "detector_eer": results["detector"]["eer"],
        "made_verify_as_training": memory["made_rate"],
        "held_out_verify_as_training": memory["held_out_rate"],
        "encoder": results["encoder"],
    }


def _write_page(out: Path, results: Json, heard: list[FloatArray]) -> None:
    folder = out / "figures"
    names = ("real", "held out", "invented")
    shown = [
        show_figure(
            folder,
            "diversity",
            "How much voices differ",
            figures.distance_histograms(
                {name: other_speaker_distances(e) for name, e in zip(names, heard, strict=True)},
                {name: same_speaker_distances(e) for name, e in zip(names, heard, strict=True)},
            ),
            "Cosine distances between embeddings: left of different speakers, right of one.",
        ),
        show_figure(
            folder,
            "map",
            "A map of the voices",
            figures.voice_map(dict(zip(names, heard, strict=True))),
            "The two directions in which real training patches differ most.",
        ),
    ]
    if results["usefulness"]:
        shown.append(
            show_figure(
                folder,
                "usefulness",
                "What they are good for",
                figures.box_plots(results["usefulness"]["eer"]),
                "EER of every device; diamond: mean.",
            )
        )
    page = page_template(
        Path(__file__).parent,
        number=lambda value, digits=3: f"{value:.{digits}f}",
        percent=lambda value: f"{100 * value:.1f}",
    ).render(results=results, verdict=verdict(results), figures=shown)
    write_text(out / "report.html", page)
