"""The generator that comes with fedspk is small, quick, whole, and made of known speech."""

from __future__ import annotations

import time

import numpy as np

from fedspk.features import FrontEndConfig
from fedspk.files import read_json
from fedspk.parallel import one_torch_thread
from fedspk.release import check_model_file, draft_manifest
from gan.diversity import spread
from gan.generator_file import generator_origin, load_generator, packaged_generator
from gan.moments import voice_summary
from gan.sampling import InventedVoices


def test_it_is_small_and_for_the_default_front_end() -> None:
    assert packaged_generator().stat().st_size <= 5_000_000
    assert load_generator(packaged_generator()).front_end == FrontEndConfig()


def test_it_says_what_it_was_made_of() -> None:
    path = packaged_generator()
    origin = generator_origin(path)
    assert origin["speakers"] == len(origin["heard"]) == 201
    assert origin["training"]["seed"] == 0
    draft = read_json(path.with_suffix(".manifest.json"))
    manifest = draft_manifest(draft, path, 1, created="2026-01-01T00:00:00Z")
    check_model_file(path, manifest)
    assert manifest.report["made_verify_as_training"] <= 0.2
    assert "LibriSpeech" in path.with_name("README.md").read_text()


def test_it_draws_more_than_a_hundred_patches_a_second_on_one_core() -> None:
    voices = InventedVoices(load_generator(packaged_generator()), seed=1)
    voices.patches([0], [0])
    with one_torch_thread():
        seconds = []
        for turn in range(4):
            started = time.process_time()
            voices.patches(range(20), [turn] * 20)
            seconds.append(time.process_time() - started)
    assert min(seconds) < 0.2


def test_its_voices_differ() -> None:
    voices = InventedVoices(load_generator(packaged_generator()), seed=1)
    numbers = np.indices((16, 8)).reshape(2, -1)
    summaries = voice_summary(voices.patches(*numbers.tolist())).view(16, 8, -1)
    found = spread(summaries)
    assert min(found.voices, found.takes) > 0.5
