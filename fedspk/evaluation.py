"""Error rates from anybody's scores, and scores from anybody's trial list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedspk.audio import FloatArray, load_audio, trim_silence
from fedspk.engine import SpeechEngine
from fedspk.errors import FedspkError
from fedspk.metrics import bootstrap_eer, det_curve, equal_error_rate, min_dcf
from fedspk.progress import progress
from fedspk.scoring import cosine_scores, make_profile
from fedspk.trials import Trial

Scores = npt.NDArray[np.float64]

_DET_POINTS = 500


def error_rates(target: Scores, nontarget: Scores, p_target: float, seed: int) -> dict[str, Any]:
    """Return EER (per cent) with its 95 % bootstrap interval and threshold, minDCF, DET points.

    Args:
        target: scores of target trials, (n,).
        nontarget: scores of non-target trials, (m,).
        p_target: prior of a target trial in the detection cost.
        seed: seed of the bootstrap over trials.
    """
    rate, curve = equal_error_rate(target, nontarget), det_curve(target, nontarget)
    kept = np.unique(np.linspace(0, len(curve.miss) - 1, _DET_POINTS).round().astype(int))
    low, high = bootstrap_eer(target, nontarget, seed=seed)
    return {
        "eer": 100 * rate.value,
        "eer_interval": [100 * low, 100 * high],
        "threshold": rate.threshold,
        "min_dcf": min_dcf(target, nontarget, p_target=p_target),
        "p_target": p_target,
        "targets": len(target),
        "nontargets": len(nontarget),
        "seed": seed,
        "det": {
            "false_accept": curve.false_alarm[kept].tolist(),
            "false_reject": curve.miss[kept].tolist(),
        },
    }


def score_trials(
    trials: Sequence[Trial], engine: SpeechEngine, root: Path
) -> tuple[Scores, Scores]:
    """Return target and non-target cosine scores; each utterance is embedded once.

    Args:
        trials: the list; utterances are files under `root`.
        engine: the model that embeds them.
        root: folder of the audio.

    Raises:
        FedspkError: an utterance is missing or is not usable speech.
    """
    names = sorted({name for trial in trials for name in (trial.enrolment, trial.test)})
    embeddings = {}
    for name in progress(names, description="embedding", unit="utterance"):
        embeddings[name] = engine.embed(_speech(root / name))
    scores: dict[bool, list[float]] = {True: [], False: []}
    for trial in trials:
        profile = make_profile(embeddings[trial.enrolment].reshape(1, -1))
        test = embeddings[trial.test].reshape(1, -1)
        scores[trial.is_target].append(float(cosine_scores(profile, test).item()))
    return np.array(scores[True]), np.array(scores[False])


def trials_fingerprint(trials: Sequence[Trial], root: Path) -> str:
    """Return a hash, in hex, of the trials and the content of their files, not of their names.

    Raises:
        OSError: an utterance cannot be read.
    """
    names = {name for trial in trials for name in (trial.enrolment, trial.test)}
    content = {}
    for name in names:
        with (root / name).open("rb") as file:
            content[name] = hashlib.file_digest(file, "sha256").hexdigest()
    lines = {
        f"{trial.is_target:d} {content[trial.enrolment]} {content[trial.test]}" for trial in trials
    }
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _speech(path: Path) -> FloatArray:
    if not path.is_file():
        raise FedspkError(f"{path}: the trial list names it, but there is no such file.")
    speech = trim_silence(load_audio(path))
    if not speech.size:
        raise FedspkError(f"{path}: holds no speech; leave its trials out of the list.")
    return speech
