"""What every arm begins from when a model is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fedspk.cache import FeatureCache
from fedspk.corpora import examine, open_corpus
from simulations.federated.cast import all_public
from simulations.federated.central import class_model
from simulations.federated.config import load_config
from simulations.federated.plan import Plan, make_public_rows
from simulations.federated.results import ArmCost
from simulations.federated.scoring import embed_rows
from simulations.federated.start import save_made, starting_model


def test_the_classes_of_a_given_model_know_their_speakers(tmp_path: Path) -> None:
    given = tmp_path / "given.safetensors"
    config = load_config("default", None, {"copies": 1, "speeds": [1.0, 0.9], "init": given})
    whole = open_corpus("synthetic")
    names = sorted(whole.speakers)[:4]
    chosen = [utterance for name in names for utterance in whole.speakers[name][:4]]
    cache = FeatureCache(tmp_path / "cache")
    corpus = examine(replace(whole, utterances=tuple(chosen)), cache, workers=1)
    rows = make_public_rows(corpus, all_public(corpus, 0), config, cache, 1)
    run = config.arm("initial", "speech", rows.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_made(given, class_model(run, rows.classes, devices=0).eval(), config, run, ArmCost())

    start, _ = starting_model(config, Plan((), rows, ()), tmp_path / "models")

    pairs = zip(rows.train.utterances, rows.train.labels, strict=True)
    heard = [(row, label) for copies, label in pairs for row in copies]
    embeddings = embed_rows(start.encoder, rows.table, [row for row, _ in heard])
    with torch.inference_mode():
        found = start.head.logits(torch.from_numpy(embeddings)).argmax(1)
    known = (found == torch.tensor([label for _, label in heard])).float().mean()
    assert known >= 0.9
