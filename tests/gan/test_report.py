"""The report as a command: a page, its figures, and the draft of the manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_arms import write_results
from tiny_generator import TINY_FRONT_END, TINY_NETWORK, make_generator

from fedspk.cache import FeatureCache
from fedspk.cli import run
from fedspk.corpora import examine, open_corpus
from fedspk.engine import HEARD, ModelDescription, save_described
from fedspk.files import read_json
from fedspk.model import HeadConfig, build_model
from fedspk.weights import load_model, save_model
from gan import quality, report
from gan.generator_file import generator_origin, load_generator, save_generator
from gan.invented import file_hash
from gan.patches import PatchPlan, public_speech
from gan.sampling import InventedVoices
from gan.training import GanTraining
from gan.training_run import Recipe, train_generator

CORPUS = "synthetic:speakers=10,utterances=2,sessions=1"
PLAN = PatchPlan(8, (1.0, 0.9))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained generator and an encoder."""
    folder = tmp_path_factory.mktemp("report")
    training = GanTraining(steps=2, pairs=2, crop_frames=32, width=8, listener_steps=2)
    recipe = Recipe(TINY_FRONT_END, TINY_NETWORK, PLAN, training)
    train_generator(CORPUS, folder / "gan", recipe, every=2, cache_root=folder / "cache")
    bins, params = TINY_FRONT_END.bins, {"channels": [8, 8, 8, 8], "embedding_dim": 8}
    model = build_model("tdnn", HeadConfig(), bins=bins, seed=1, **params)
    save_described(
        folder / "encoder.safetensors", model, ModelDescription("tdnn", TINY_FRONT_END, params)
    )
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_VOICES", 8)
    monkeypatch.setattr(quality, "_DETECTOR", replace(quality._DETECTOR, steps=2, batch_size=4))


def command(place: Path, out: Path, *more: str) -> list[str]:
    return [
        *("gan", "report", "--model", str(place / "gan" / "generator.safetensors")),
        *("--corpus", CORPUS, "--encoder", str(place / "encoder.safetensors")),
        *("--cache", str(place / "cache"), "--out", str(out), *more),
    ]


@pytest.mark.usefixtures("small")
def test_a_report_is_a_page_with_pictures_and_a_draft(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = place / "gan" / "generator.safetensors"
    run_folder = write_results(tmp_path, ("individual", "federated", "federated-gan"), generator)
    out = tmp_path / "out"
    assert run(command(place, out, "--json", "--experiment", str(run_folder))) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == read_json(out / "report.json")
    frechet = found["frechet"]
    assert 0 <= frechet["floor"] < frechet["noise"]
    assert 0 <= found["detector"]["eer"] <= 1
    memory = found["memorisation"]
    assert memory["made_interval"][0] <= memory["made_rate"] <= memory["made_interval"][1]
    page = (out / "report.html").read_text()
    for told in ("learned by heart", "Fréchet", "Of what use?", "<svg", "sheet.png"):
        assert told in page
    assert "<td>invented</td>" in page
    assert "<td>made</td>" not in page
    assert (out / "sheet.png").stat().st_size > 1000
    draft = read_json(out / "generator.manifest.json")
    assert draft["report"]["detector_eer"] == found["detector"]["eer"]
    assert draft["report"]["is_memorised"] == memory["is_found"]
    assert draft["content_hash"] == found["generator"]["content_hash"] == file_hash(generator)
    assert found["encoder_heard"] is None
    assert run(command(place, out)) == 0
    said = capsys.readouterr().out
    assert "An invented patch verifies as a given training speaker" in said
    assert "UNFAIR" not in said
    again = read_json(out / "report.json")
    assert again["memorisation"] == memory


@pytest.mark.usefixtures("small")
def test_what_does_not_go_together_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = CORPUS.replace("10", "9")
    wrong = [other if part == CORPUS else part for part in command(place, tmp_path)]
    assert run(wrong) == 2
    assert "is not the speech that" in capsys.readouterr().err
    run_folder = write_results(tmp_path, ("individual",), place / "gan" / "generator.safetensors")
    assert run(command(place, tmp_path, "--experiment", str(run_folder))) == 2
    assert "has no arm federated" in capsys.readouterr().err
    deaf = make_generator(tmp_path / "deaf.safetensors", front_end=replace(TINY_FRONT_END, bins=9))
    place_of_deaf = [*command(place, tmp_path), "--model", str(deaf)]
    assert run(place_of_deaf) == 2
    assert "trained with the encoder's front end" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_generator_that_replays_training_patches_at_another_speed_is_found_out(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examined = examine(open_corpus(CORPUS), FeatureCache(place / "cache"))
    speech = public_speech(examined, TINY_FRONT_END, PLAN, FeatureCache(place / "cache"), seed=0)
    slow = speech.train.speakers[1::2]

    def replay(_: InventedVoices, speakers: Sequence[int], takes: Sequence[int]) -> torch.Tensor:
        chosen = [slow[s % len(slow)][t] for s, t in zip(speakers, takes, strict=True)]
        return speech.train.table.gather(chosen)

    monkeypatch.setattr(InventedVoices, "patches", replay)
    assert run(command(place, tmp_path)) == 0
    assert "seems to be learned by heart" in capsys.readouterr().out
    found = read_json(tmp_path / "report.json")["memorisation"]
    assert found["nearer"] == 1.0
    assert found["replaying"] == found["voices"] == 8


@pytest.mark.usefixtures("small")
def test_invented_patches_are_rounded_as_real_ones_are(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(
        real: tuple[torch.Tensor, ...], made: tuple[torch.Tensor, ...], seed: int
    ) -> quality.Detection:
        for patches in (*real, *made):
            assert torch.equal(patches, patches.half().float())
        return quality.Detection(0.5, (0.4, 0.6))

    monkeypatch.setattr(report, "detect", detect)
    assert run(command(place, tmp_path)) == 0
    assert read_json(tmp_path / "report.json")["detector"]["eer"] == 0.5


@pytest.mark.usefixtures("small")
def test_an_encoder_that_knows_the_training_speech_makes_the_report_unfair(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = generator_origin(place / "gan" / "generator.safetensors")["heard"]
    weights, metadata = load_model(place / "encoder.safetensors")
    knowing = tmp_path / "knowing.safetensors"
    save_model(knowing, weights, {**metadata, HEARD: " ".join([*heard[:3], "0" * 16])})
    assert run([*command(place, tmp_path), "--encoder", str(knowing)]) == 0
    assert "UNFAIR: the encoder was trained on 3 of the utterances" in capsys.readouterr().out
    assert read_json(tmp_path / "report.json")["encoder_heard"] == {"train": 3, "held_out": 0}


@pytest.mark.parametrize("speakers", [4, 7])
def test_a_generator_with_one_held_out_speaker_is_no_ground_for_a_report(
    speakers: int, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = CORPUS.replace("10", str(speakers))
    examined = examine(open_corpus(corpus), FeatureCache(place / "cache"))
    generator = tmp_path / "generator.safetensors"
    save_generator(
        generator,
        load_generator(make_generator(generator)),
        corpus=examined.fingerprint,
        speakers=speakers - 1,
        origin={"plan": {"patches": 2, "speeds": [1.0]}, "training": {"seed": 0}},
    )
    few = [corpus if part == CORPUS else part for part in command(place, tmp_path)]
    assert run([*few, "--model", str(generator)]) == 2
    assert "1 was held out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "origin", [{}, {"plan": {"patches": 2, "speeds": []}, "training": {"seed": 0}}]
)
def test_a_generator_that_does_not_tell_its_patches_is_refused(
    origin: dict[str, Any], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = make_generator(tmp_path / "silent.safetensors")
    save_generator(silent, load_generator(silent), corpus="speech", speakers=3, origin=origin)
    assert run([*command(place, tmp_path), "--model", str(silent)]) == 2
    assert "which patches it was trained on" in capsys.readouterr().err
