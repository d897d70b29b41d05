"""The report as a command: a page, its figures, and the draft of the manifest."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_generator import TINY_FRONT_END, TINY_NETWORK, make_generator

from fedspk.cli import run
from fedspk.engine import ModelDescription, save_described
from fedspk.files import read_json, write_json
from fedspk.model import HeadConfig, build_model
from gan import quality, report
from gan.patches import PatchPlan
from gan.training import GanTraining
from gan.training_run import Recipe, train_generator

CORPUS = "synthetic:speakers=10,utterances=2,sessions=1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained generator and an encoder."""
    folder = tmp_path_factory.mktemp("report")
    training = GanTraining(steps=2, pairs=2, crop_frames=32, width=8, listener_steps=2)
    recipe = Recipe(TINY_FRONT_END, TINY_NETWORK, PatchPlan(2, (1.0,)), training)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "step .* collapsing")
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


def experiment(folder: Path, arms: tuple[str, ...]) -> str:
    tests = [
        {"metric": "eer", "test": "paired t", "a": a, "b": "federated-gan", "p_value": 0.01}
        for a in ("individual", "federated")
    ]
    summary = {arm: {"mean_eer": 5.0, "mean_eer_interval": [4.0, 6.0]} for arm in arms}
    devices = [{"eer": dict.fromkeys(arms, 5.0)} for _ in range(3)]
    write_json(folder / "results.json", {"summary": summary, "tests": tests, "devices": devices})
    return str(folder)


@pytest.mark.usefixtures("small")
def test_a_report_is_a_page_with_pictures_and_a_draft(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = experiment(tmp_path, ("individual", "federated", "federated-gan"))
    out = tmp_path / "out"
    assert run(command(place, out, "--json", "--experiment", run_folder)) == 0
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
    assert (out / "sheet.png").stat().st_size > 1000
    draft = read_json(out / "generator.manifest.json")
    assert draft["report"]["detector_eer"] == found["detector"]["eer"]
    assert run(command(place, out)) == 0
    assert "They verify as a training speaker" in capsys.readouterr().out
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
    run_folder = experiment(tmp_path, ("individual",))
    assert run(command(place, tmp_path, "--experiment", run_folder)) == 2
    assert "has no arm federated" in capsys.readouterr().err
    deaf = make_generator(tmp_path / "deaf.safetensors", front_end=replace(TINY_FRONT_END, bins=9))
    place_of_deaf = [*command(place, tmp_path), "--model", str(deaf)]
    assert run(place_of_deaf) == 2
    assert "trained with the encoder's front end" in capsys.readouterr().err
