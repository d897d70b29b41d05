"""The command line: what a newcomer types, and what a mistake gets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sounds import write_speakers
from typed_commands import fails

from fedspk.audio import SAMPLE_RATE, save_audio
from fedspk.cli import run
from fedspk.files import read_json
from fedspk.release import draft_manifest

SCORES = "1 0.9\n1 0.8\n1 0.3\n0 0.1\n0 0.2\n0 0.4\n"


@pytest.mark.parametrize("command", ["simulate", "pretrain", "evaluate", "compare", "info"])
def test_every_command_has_help_with_an_example(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run([command, "--help"]) == 0
    assert f"Example: fedspk {command}" in " ".join(capsys.readouterr().out.split())


def test_wrong_flags_and_values_are_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert "--wrong" in fails(capsys, "simulate", "--wrong")
    assert "--out" in fails(capsys, "simulate")
    assert "--devices" in fails(capsys, "simulate", "--devices", "many", "--out", out)
    assert "arms" in fails(capsys, "simulate", "--arms", "best", "--out", out)
    assert "encoder" in fails(capsys, "simulate", "--encoder", "gpt", "--out", out)
    assert "simulat" in fails(capsys, "simulat")
    assert not (tmp_path / "out").exists()


def test_wrong_paths_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    absent = str(tmp_path / "absent")
    assert absent in fails(capsys, "simulate", "--corpus", absent, "--out", out)
    assert absent in fails(capsys, "simulate", "--config", absent, "--out", out)
    assert absent in fails(capsys, "evaluate", "--scores", absent)
    assert absent in fails(capsys, "compare", absent, absent)
    (tmp_path / "file").write_text("in the way")
    assert "file" in fails(capsys, "simulate", "--out", str(tmp_path / "file"))


def test_a_corpus_with_too_few_speakers_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("anna/1.wav", "anna/2.wav", "bert/1.wav"):
        noise = rng.standard_normal(2 * SAMPLE_RATE).astype(np.float32) / 10
        (tmp_path / "speech" / name).parent.mkdir(parents=True, exist_ok=True)
        save_audio(tmp_path / "speech" / name, noise)
    error = fails(
        capsys, "simulate", "--corpus", str(tmp_path / "speech"), "--out", str(tmp_path / "out")
    )
    assert "2 speakers" in error
    assert not (tmp_path / "out").exists()


def test_scores_are_evaluated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "scores").write_text(SCORES)
    arguments = ["evaluate", "--scores", str(tmp_path / "scores")]
    assert run(arguments) == 0
    assert "EER 33.33 %" in capsys.readouterr().out
    assert run([*arguments, "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["eer"] == pytest.approx(100 / 3)
    assert (tmp_path / "det.png").read_bytes()[:4] == b"\x89PNG"


def test_evaluate_wants_scores_or_trials_with_a_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "--scores" in fails(capsys, "evaluate")
    assert "--model" in fails(capsys, "evaluate", "--trials", str(tmp_path / "trials"))
    scores = ["--scores", str(tmp_path / "scores"), "--manifest", str(tmp_path / "draft.json")]
    assert "--manifest needs --trials" in fails(capsys, "evaluate", *scores)


def test_a_pretrained_model_scores_trials_and_starts_an_experiment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, cache = tmp_path / "v1.safetensors", ["--cache", str(tmp_path / "cache")]
    write_speakers(tmp_path / "public", speakers=6, utterances=4)
    made = [
        "pretrain",
        "--corpus",
        str(tmp_path / "public"),
        "--out",
        str(model),
        "--steps",
        "4",
        *cache,
    ]
    assert run([*made, "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["speakers"] == 6
    rng = np.random.default_rng(0)
    for name in ("a.wav", "b.wav", "c.wav"):
        save_audio(tmp_path / name, rng.standard_normal(2 * SAMPLE_RATE).astype(np.float32) / 10)
    (tmp_path / "trials").write_text("1 a.wav b.wav\n0 a.wav c.wav\n")
    assert run(["evaluate", "--trials", str(tmp_path / "trials"), "--model", str(model)]) == 0
    assert "1 target and 1 non-target" in capsys.readouterr().out
    draft = tmp_path / "draft.json"
    evaluate = ["evaluate", "--trials", str(tmp_path / "trials"), "--model", str(model)]
    assert run([*evaluate, "--manifest", str(draft)]) == 0
    card = draft_manifest(read_json(draft), model, 1, created="2026-01-01T00:00:00Z")
    assert card.evaluation is not None and card.evaluation.devices == 1
    assert card.thresholds == ()  # one non-target trial supports none
    capsys.readouterr()
    simulate = ["simulate", "--corpus", "synthetic:speakers=8,utterances=10,sessions=2"]
    simulate += ["--devices", "3", "--arms", "initial", "--init", str(model), "--json", *cache]
    assert run([*simulate, "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["initial"]["cost"]["steps"] == 0
    wrong = [*simulate, "--encoder", "vggm-small", "--out", str(tmp_path / "other")]
    assert "give --encoder" in fails(capsys, *wrong)


def test_a_missing_audio_file_of_a_trial_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    (tmp_path / "trials").write_text("1 a.wav b.wav\n0 a.wav c.wav\n")
    arguments = ["--trials", str(tmp_path / "trials"), "--model"]
    error = fails(capsys, "evaluate", *arguments, str(tmp_path / "model.safetensors"))
    assert "model.safetensors" in error


def test_a_model_that_has_heard_the_test_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, cache = str(tmp_path / "v1.safetensors"), ["--cache", str(tmp_path / "cache")]
    corpus = ["--corpus", "synthetic:speakers=8,utterances=10,sessions=2"]
    assert run(["pretrain", *corpus, "--out", model, "--steps", "1", *cache]) == 0
    capsys.readouterr()
    out = ["--out", str(tmp_path / "out")]
    error = fails(capsys, "simulate", *corpus, "--devices", "3", "--init", model, *out, *cache)
    assert "was trained on" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_run_can_continue(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fedspk", "simulate", "--preset", "quick", "--workers", "2"]
    command += ["--corpus", "synthetic:speakers=8,utterances=10,sessions=2", "--devices", "3"]
    command += ["--cache", str(tmp_path / "cache"), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (out / "fold-0" / "models").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.partial"))
    assert not (out / "results.json").exists()
    assert run([*command[3:], "--resume"]) == 0
    assert (out / "results.json").exists()
