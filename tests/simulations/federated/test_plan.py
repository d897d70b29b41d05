"""Which rows train, validate and test: no row does two of these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedspk.cache import FeatureCache
from fedspk.corpora import examine, open_corpus
from simulations.federated.cast import all_public
from simulations.federated.config import ExperimentConfig
from simulations.federated.plan import make_public_rows

_SPEAKERS = 3


def test_public_speakers_validate_at_every_speed_also_with_a_lone_utterance(tmp_path: Path) -> None:
    config = ExperimentConfig(copies=2, speeds=(1.0, 0.9))
    cache = FeatureCache(tmp_path)
    whole = open_corpus("synthetic")
    names = sorted(whole.speakers)[:_SPEAKERS]
    lone, several = whole.speakers[names[0]][:1], [whole.speakers[name][:5] for name in names[1:]]
    chosen = replace(whole, utterances=(*lone, *(u for each in several for u in each)))
    corpus = examine(chosen, cache, workers=1, show_progress=False)
    rows = make_public_rows(corpus, all_public(corpus, 0), config, cache, 1)

    assert set(rows.train.labels) == set(rows.validation.labels) == set(range(rows.classes))
    train, validation = (
        [row for variants in part.utterances for row in variants]
        for part in (rows.train, rows.validation)
    )
    assert not set(train) & set(validation)
    features = {row: rows.table.gather([row]).numpy().tobytes() for row in train + validation}
    assert not {features[row] for row in train} & {features[row] for row in validation}
