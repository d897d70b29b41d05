"""`fedspk gan report`: a page on one generator: how real, how varied, what it has by heart."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedspk.cache import FeatureCache
from fedspk.cli import installed_versions
from fedspk.corpora import Corpus, examine, open_corpus
from fedspk.engine import HEARD, SpeechEngine
from fedspk.errors import FedspkError
from fedspk.features import normalise
from fedspk.files import write_json, write_text
from fedspk.page import page_template, show_figure
from fedspk.parallel import one_torch_thread
from fedspk.progress import progress
from fedspk.release import Scalar
from fedspk.scoring import cosine
from fedspk.seeds import derive
from fedspk.weights import load_model
from gan import figures
from gan.generator_file import check_front_end, generator_origin, load_generator
from gan.invented import file_hash
from gan.manifest import write_draft
from gan.memorisation import NEAR, memorisation
from gan.patches import PatchPlan, PublicSpeech, SpeakerPatches, divide_speakers, public_speech
from gan.quality import (
    detect,
    frechet_distance,
    other_speaker_distances,
    same_speaker_distances,
    speaker_eer,
)
from gan.sampling import InventedVoices
from gan.sheets import sample_sheet, write_figure
from gan.usefulness import ALONE, INVENTED, REAL, read_usefulness

Json: TypeAlias = dict[str, Any]
FloatArray: TypeAlias = npt.NDArray[np.float32]

_VOICES = 200
_TRAIN_SHARE = 0.75  # of made voices, for the detector
_SHEET = 6, 4
_LEAST_HELD_OUT = 2
_BATCH = 64  # patches that are heard at once


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
        experiment: folder of a run with real and with this generator's impostors: their use.
        seed: of the voices and the detector.
        workers: processes that compute features.
        cache_root: folder of the feature cache; None takes the user's.

    Raises:
        FedspkError: a file is not what it should be, or generator, corpus and encoder do not go
            together.
    """
    usefulness = read_usefulness(experiment, generator) if experiment else None
    made = load_generator(generator)
    engine = SpeechEngine.load(encoder)
    check_front_end(generator, made, engine.front_end)
    origin = generator_origin(generator)
    plan, training_seed = _training(generator, origin)
    cache = FeatureCache(cache_root)
    examined = examine(open_corpus(corpus), cache, workers=workers, show_progress=True)
    if examined.fingerprint != origin["corpus"]:
        raise FedspkError(
            f"{corpus}: is not the speech that {generator} was trained on; give that corpus, so "
            "that held-out speakers are known."
        )
    _check_held_out(generator, examined, training_seed)
    speech = public_speech(
        examined,
        made.front_end,
        plan,
        cache,
        seed=training_seed,
        workers=workers,
        held_out_speeds=plan.speeds,
    )
    speeds = len(plan.speeds)
    with one_torch_thread():
        voices = _drawn(InventedVoices(made, derive(seed, "report")), speech.train.takes)
        train, held_out = (
            _patches(replace(each, speakers=each.speakers[::speeds]))
            for each in (speech.train, speech.held_out)
        )
        known, strangers = (
            _heard(engine, each, speeds) for each in (speech.train, speech.held_out)
        )
        invented = _embedded(engine, voices)
        heard = [known[:, 0], strangers[:, 0], invented]  # speech as it was spoken
        results: Json = {
            **_measured(heard, engine, made.front_end.normalise, seed),
            "detector": asdict(_detected(train, held_out, voices, seed)),
            "memorisation": asdict(memorisation(known, strangers, invented, seed)),
            "usefulness": usefulness,
            "generator": {
                "bytes": generator.stat().st_size,
                "content_hash": file_hash(generator),
                **origin,
            },
            "encoder": engine.model_hash,
            "encoder_heard": _encoder_heard(encoder, speech),
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
    frechet, detector = results["frechet"], results["detector"]
    sentences = [
        *_unfairness(results["encoder_heard"]),
        f"A detector tells invented patches from real ones with an EER of "
        f"{_share(detector['eer'], detector['interval'])}; 50 %: it cannot tell.",
        f"Their Fréchet distance from real speech is {frechet['made']:.3f}; two halves of real "
        f"speech have {frechet['floor']:.3f}, white noise has {frechet['noise']:.3f}.",
        *_memorised(results["memorisation"]),
    ]
    if results["usefulness"]:
        invented, real, alone = (
            f"{arm['mean_eer']:.2f} % ({arm['mean_eer_interval'][0]:.2f} to "
            f"{arm['mean_eer_interval'][1]:.2f})"
            for arm in (results["usefulness"]["arms"][name] for name in (INVENTED, REAL, ALONE))
        )
        sentences.append(
            f"Devices that trained against them reach a mean EER of {invented}, against real "
            f"impostors {real}, alone {alone}."
        )
    return sentences


def _memorised(memory: Json) -> list[str]:
    difference = 100 * (memory["made_rate"] - memory["held_out_rate"])
    low, high = (100 * value for value in memory["difference_interval"])
    return [
        "An invented patch verifies as a given training speaker in "
        f"{_share(memory['made_rate'], memory['made_interval'])} of the trials, one of a held-out "
        f"speaker in {_share(memory['held_out_rate'], memory['held_out_interval'])}: a difference "
        f"of {difference:+.1f} points ({low:+.1f} to {high:+.1f}).",
        f"{_share(memory['nearer'], memory['nearer_interval'])} of the invented patches are among "
        f"what lies nearest to training patches, of the held-out ones {100 * NEAR:.0f} %; "
        f"{memory['replaying']} of {memory['voices']} invented voices lie nearer than chance "
        "allows.",
        "Training speech seems to be learned by heart (some 7 of 100 harmless generators look so "
        "by chance): do not publish this one before you know why."
        if memory["is_found"]
        else "No sign that training speech was learned by heart; which is no proof that none was.",
    ]


def _unfairness(heard: Json | None) -> list[str]:
    if heard is None or not any(heard.values()):
        return []
    return [
        f"UNFAIR: the encoder was trained on {heard['train']} of the utterances that the generator "
        f"was trained on and on {heard['held_out']} held-out ones, and hears them better than "
        "strangers; use an encoder of other speech."
    ]


def _share(value: float, interval: list[float] | tuple[float, float]) -> str:
    """Return a share (0 to 1) in per cent, with its interval."""
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _training(generator: Path, origin: Json) -> tuple[PatchPlan, int]:
    """Return what was made of the corpus when the generator was trained, and the seed."""
    try:
        patches, speeds = origin["plan"]["patches"], tuple(origin["plan"]["speeds"])
        if min(patches, *speeds) <= 0:
            raise ValueError("patches and speeds are above 0")
        return PatchPlan(patches, speeds), origin["training"]["seed"]
    except (KeyError, TypeError, ValueError) as error:
        raise FedspkError(
            f"{generator}: does not say which patches it was trained on; train it again with "
            "`fedspk gan train`."
        ) from error


def _check_held_out(generator: Path, corpus: Corpus, seed: int) -> None:
    train, held_out = divide_speakers(corpus, seed)
    if len(held_out) < _LEAST_HELD_OUT:
        raise FedspkError(
            f"{generator}: was trained on {len(train)} speakers and {len(held_out)} was held out, "
            "with whom nothing can be compared; a report needs a generator trained on a corpus of "
            "8 or more."
        )


def _encoder_heard(encoder: Path, speech: PublicSpeech) -> Json | None:
    """Return how many utterances of each part the encoder was trained on; None: it does not say."""
    _, metadata = load_model(encoder)
    if HEARD not in metadata:
        return None
    marks = set(metadata[HEARD].split())
    train = {utterance.mark for utterance in speech.heard}
    held_out = {utterance.mark for utterance in speech.corpus.utterances} - train
    return {"train": len(marks & train), "held_out": len(marks & held_out)}


def _drawn(voices: InventedVoices, takes: int) -> Tensor:
    """Return patches (voices, takes, frames, bins), rounded to float16 as real ones are stored."""
    front_end = voices.generator.front_end
    made = torch.empty(_VOICES, takes, front_end.frames, front_end.bins)
    for speaker in progress(range(_VOICES), description="Drawing voices", unit="voice"):
        made[speaker] = voices.patches([speaker] * takes, range(takes)).half()
    return made


def _patches(speakers: SpeakerPatches) -> Tensor:
    return torch.stack([speakers.table.gather(rows) for rows in speakers.speakers])


def _heard(engine: SpeechEngine, patches: SpeakerPatches, speeds: int) -> FloatArray:
    """Return embeddings (people, speeds, takes, D), without holding all patches in memory."""
    rows = patches.rows
    parts = [
        engine.embed_features(patches.table.gather(rows[start : start + _BATCH]))
        for start in progress(range(0, len(rows), _BATCH), description="Listening", unit="batch")
    ]
    shaped: FloatArray = np.concatenate(parts).reshape(-1, speeds, patches.takes, parts[0].shape[1])
    return shaped


def _embedded(engine: SpeechEngine, patches: Tensor) -> FloatArray:
    embeddings = engine.embed_features(patches.flatten(0, 1))
    shaped: FloatArray = embeddings.reshape(*patches.shape[:2], -1)
    return shaped


def _measured(heard: list[FloatArray], engine: SpeechEngine, how: Any, seed: int) -> Json:
    """Return Fréchet distances and diversity of (train, held-out, made) embeddings."""
    train, held_out, made = heard
    half = min(len(train) // 2, len(made))
    shape = (half * made.shape[1], engine.front_end.frames, engine.front_end.bins)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(derive(seed, "noise")))
    flat = [part.reshape(-1, part.shape[2]) for part in (train[:half], train[half : 2 * half])]
    unit = [cosine.normalise(each) for each in (*flat, made[:half].reshape(-1, made.shape[2]))]
    unit_noise = cosine.normalise(engine.embed_features(normalise(noise, how)))
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
    return detect((train, held_out), (voices[:cut], voices[cut:]), derive(seed, "detector"))


def _quartiles(distances: FloatArray) -> list[float]:
    return [float(value) for value in np.quantile(distances, [0.25, 0.5, 0.75])]


def _headline(results: Json) -> dict[str, Scalar]:
    """Return the figures that the manifest carries."""
    memory, detector = results["memorisation"], results["detector"]
    return {
        "frechet_floor": results["frechet"]["floor"],
        "frechet_made": results["frechet"]["made"],
        "frechet_noise": results["frechet"]["noise"],
        "detector_eer": detector["eer"],
        **_ends("detector_eer", detector["interval"]),
        "made_verify_as_training": memory["made_rate"],
        "held_out_verify_as_training": memory["held_out_rate"],
        **_ends("verify_difference", memory["difference_interval"]),
        "nearer": memory["nearer"],
        **_ends("nearer", memory["nearer_interval"]),
        "replaying_voices": memory["replaying"],
        "voices": memory["voices"],
        "is_memorised": memory["is_found"],
        "encoder": results["encoder"],
    }


def _ends(name: str, interval: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


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
    ).render(results=results, near=NEAR, verdict=verdict(results), figures=shown)
    write_text(out / "report.html", page)
