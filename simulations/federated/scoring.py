"""A device's trials under one model: cosine against its profile, and the classifier's own score.

Impostors are the other owners' test utterances and, apart, the outsiders'. The classifier is
scored on the headline trials: simulated sessions, other owners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedspk.encoders import Encoder
from fedspk.feature_table import FeatureTable
from fedspk.model import SpeakerModel
from fedspk.parallel import one_torch_thread
from fedspk.scoring import cosine_scores, make_profile
from fedspk.weights import content_hash, flatten
from simulations.federated.plan import FEATURES, TrialRows, open_trial_rows
from simulations.federated.trials import Condition, DeviceScores, TrialScores

FloatArray = npt.NDArray[np.float32]

_BATCH = 64


@dataclass(frozen=True)
class _Embedded:
    """Embeddings (N, D) float32 of the trial rows under one encoder, by row number."""

    digest: str
    position: dict[int, int]
    embeddings: FloatArray

    def of(self, rows: Sequence[int]) -> FloatArray:
        return self.embeddings[[self.position[row] for row in rows]]


# The last encoder of this process: one that all devices share is run over the trials only once.
_last: dict[Path, _Embedded] = {}


def score_device(
    model: SpeakerModel, folder: Path, index: int, *, classifier: bool
) -> DeviceScores:
    """Return the scores of all trials of device `index`.

    Args:
        model: the device's model; its `owner_label` is this device's owner.
        folder: the saved plan.
        index: the device's number.
        classifier: whether the model has a class for the owner.
    """
    rows = open_trial_rows(folder)
    shown = _embedded(model, folder, rows)
    owner = rows.owners[index]
    others = [other for number, other in enumerate(rows.owners) if number != index]
    target = shown.of(owner.test)
    nontarget = shown.of([row for other in others for row in other.test])
    clean = shown.of([row for other in others for row in other.test_clean])
    voice = make_profile(shown.of(owner.enrolment))
    voice_clean = make_profile(shown.of(owner.enrolment_clean))
    scores: dict[Condition, TrialScores] = {
        "sessions": _cosine(voice, target, nontarget),
        "within_session": _cosine(voice_clean, shown.of(owner.test_clean), clean),
        "outsiders": _cosine(voice, target, shown.of(rows.outsiders)),
    }
    if classifier:
        scores["classifier"] = TrialScores(_classify(model, target), _classify(model, nontarget))
    return scores


@torch.inference_mode()
def embed(encoder: Encoder, features: Tensor) -> Tensor:
    """Return the embeddings (N, D) float32 of features (N, frames, bins), in evaluation mode."""
    encoder.eval()
    with one_torch_thread():
        return encoder(features).float()


def embed_rows(encoder: Encoder, table: FeatureTable, rows: Sequence[int]) -> FloatArray:
    """Return the embeddings (N, D) float32 of rows of a feature table, in evaluation mode."""
    embeddings = np.empty((len(rows), encoder.embedding_dim), dtype=np.float32)
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        embeddings[start : start + len(part)] = embed(encoder, table.gather(part)).numpy()
    return embeddings


def _cosine(voice: FloatArray, target: FloatArray, nontarget: FloatArray) -> TrialScores:
    return TrialScores(
        cosine_scores(voice[np.newaxis], target)[0],
        cosine_scores(voice[np.newaxis], nontarget)[0],
    )


@torch.inference_mode()
def _classify(model: SpeakerModel, embeddings: FloatArray) -> FloatArray:
    scores: FloatArray = model.owner_scores_of_embedding(torch.from_numpy(embeddings)).numpy()
    return scores


def _embedded(model: SpeakerModel, folder: Path, rows: TrialRows) -> _Embedded:
    state = model.encoder.state_dict()
    digest = content_hash(flatten(state, sorted(state)))
    found = _last.get(folder)
    if found is None or found.digest != digest:
        _last.clear()
        wanted = _all_rows(rows)
        table = FeatureTable.open(folder / FEATURES)
        embeddings = embed_rows(model.encoder, table, wanted)
        found = _Embedded(digest, {row: i for i, row in enumerate(wanted)}, embeddings)
        _last[folder] = found
    return found


def _all_rows(rows: TrialRows) -> list[int]:
    owned = [
        (*owner.enrolment, *owner.enrolment_clean, *owner.test, *owner.test_clean)
        for owner in rows.owners
    ]
    return sorted({row for part in [*owned, rows.outsiders] for row in part})
