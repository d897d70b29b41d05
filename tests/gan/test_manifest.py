"""A draft tells of one file: no other is published by it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tiny_generator import make_generator

from fedspk.errors import FedspkError
from fedspk.files import read_json
from fedspk.release import draft_manifest
from gan.generator_file import load_generator, save_generator
from gan.manifest import write_draft


def test_a_draft_publishes_the_file_that_it_tells_of_and_no_other(tmp_path: Path) -> None:
    generator = make_generator(tmp_path / "generator.safetensors")
    other = make_generator(tmp_path / "other.safetensors", seed=2)
    write_draft(generator, tmp_path / "draft.json", {"nearer": 0.05, "is_memorised": False})
    draft = read_json(tmp_path / "draft.json")
    assert draft["content_hash"] == hashlib.sha256(generator.read_bytes()).hexdigest()
    published = draft_manifest(draft, generator, 1, created="2026-01-01T00:00:00Z")
    assert published.report == {"nearer": 0.05, "is_memorised": False}
    with pytest.raises(FedspkError, match="content_hash"):
        draft_manifest(draft, other, 1, created="2026-01-01T00:00:00Z")


def test_a_draft_says_which_step_the_weights_are_of(tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    made = load_generator(make_generator(path))
    origin = {"training": {"steps": 5000, "seed": 0}, "reached": {"step": 2250}}
    save_generator(path, made, corpus="speech", speakers=3, origin=origin)
    write_draft(path, tmp_path / "draft.json")
    config = read_json(tmp_path / "draft.json")["training"]["config"]
    assert config == {"steps": 5000, "seed": 0, "reached_step": 2250}
