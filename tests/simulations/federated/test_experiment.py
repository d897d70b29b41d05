"""The whole experiment, tiny, on made voices: results, determinism, interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
from tiny_generator import make_generator

from fedspk.cache import FeatureCache
from fedspk.cli import run
from fedspk.corpora import examine, open_corpus
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.files import read_json
from server.repository import Repository
from simulations.executors import Executor, SerialExecutor, open_executor
from simulations.federated import arms
from simulations.federated.config import ExperimentConfig, load_config
from simulations.federated.experiment import run_experiment
from simulations.federated.plan import trials_fingerprint

TINY = {
    "corpus": "synthetic:speakers=8,utterances=10,sessions=2",
    "devices": 3,
    "copies": 1,
    "speeds": [1.0],
    "test_sessions": 1,
    "run.encoder": "tdnn",
    "run.encoder_params": {"embedding_dim": 32},
    "run.batch_size": 8,
    "run.crop_frames": 100,
    "federated.rounds": 2,
    "federated.local_steps": 2,
    "federated.evaluate_every": 1,
    "individual.steps": 4,
    "individual.validate_every": 2,
    "personalised.steps": 2,
    "personalised.validate_every": 1,
    "pretrain.steps": 6,
    "pretrain.validate_every": 3,
    "pooled.steps": 4,
    "pooled.validate_every": 2,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load_config("default", None, TINY)


@pytest.fixture(scope="module")
def finished(
    config: ExperimentConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    with SerialExecutor() as executor:
        run_experiment(config, out, executor, cache_root=cache)
    return out


def numbers(out: Path) -> dict[str, Any]:
    """Return what must be equal between two runs: everything but the seconds they took."""
    results: dict[str, Any] = read_json(out / "results.json")
    for line in results["summary"].values():
        line["cost"].pop("seconds")
    for history in results["history"].values():
        for entry in history:
            entry.pop("seconds")
            entry.pop("training_seconds")
            for sums in entry["secure"]:
                sums.pop("seconds")
    for sums in results["secure"].values():
        sums["updates"].pop("seconds")
        sums["validation"].pop("seconds")
    return results


def rerun(
    config: ExperimentConfig, out: Path, cache: Path, executor: Executor, resume: bool = False
) -> dict[str, Any]:
    with executor:
        run_experiment(config, out, executor, cache_root=cache, resume=resume)
    return numbers(out)


def test_every_arm_is_scored_in_every_way(finished: Path) -> None:
    results = read_json(finished / "results.json")
    assert sorted(results["summary"]) == sorted(
        ["initial", "individual", "averaged", "federated", "personalised", "pooled"]
    )
    for arm, line in results["summary"].items():
        assert 0 <= line["mean_eer"] <= 100
        assert line["mean_eer_within_session"] is not None
        assert line["mean_eer_outsiders"] is not None
        assert (line["mean_eer_classifier"] is None) == (arm == "initial")
    assert results["summary"]["federated"]["cost"]["bytes"] > 0
    assert results["summary"]["individual"]["cost"]["steps"] > 0
    assert len(results["devices"]) == 3
    assert (finished / "report.html").stat().st_size > 10_000


def test_results_say_how_they_were_made(finished: Path) -> None:
    results = read_json(finished / "results.json")
    assert results["seed"] == 0
    assert results["config"]["run"]["encoder"] == "tdnn"
    assert results["versions"]["torch"]
    assert results["corpus"]["fingerprint"]


def test_models_are_published_with_what_the_run_knows_of_them(
    config: ExperimentConfig, finished: Path, tmp_path: Path
) -> None:
    models, versions = finished / "fold-0" / "models", tmp_path / "versions"
    assert run(["server", "init", str(versions)]) == 0
    for name in ("initial", "federated"):
        model, draft = models / f"{name}.safetensors", models / f"{name}.manifest.json"
        publish = ["server", "publish", str(versions), "--model", str(model)]
        assert run([*publish, "--manifest", str(draft), "--channel", "training"]) == 0
    repository = Repository(versions)
    manifest = repository.manifest(repository.read(), "model", 2)
    results = read_json(finished / "results.json")
    assert manifest.content_hash == results["models"]["federated"]
    assert manifest.training is not None and manifest.evaluation is not None
    best = int(results["summary"]["federated"]["cost"]["best_step"])
    assert (manifest.training.round, manifest.training.cohort_size) == (best, 3 if best else None)
    assert manifest.training.config["encoder"] == "tdnn"  # type: ignore[index]
    fold, corpus = finished / "fold-0", results["corpus"]["fingerprint"]
    first = repository.manifest(repository.read(), "model", 1).evaluation
    assert first is not None and first.corpus == manifest.evaluation.corpus
    assert manifest.evaluation.corpus == trials_fingerprint(fold, corpus, config)
    other = config.model_copy(update={"seed": config.seed + 1})  # other sessions are drawn
    assert manifest.evaluation.corpus != trials_fingerprint(fold, corpus, other)


def test_worker_processes_give_the_same_numbers(
    config: ExperimentConfig, cache: Path, finished: Path, tmp_path: Path
) -> None:
    executor = open_executor("inprocess", workers=2)
    assert rerun(config, tmp_path / "out", cache, executor) == numbers(finished)


@pytest.mark.slow
def test_ray_gives_the_same_numbers(
    config: ExperimentConfig, cache: Path, finished: Path, tmp_path: Path
) -> None:
    executor = open_executor("ray", workers=2)
    assert rerun(config, tmp_path / "out", cache, executor) == numbers(finished)


STAGES = ["run_individual", "run_averaged", "run_federated", "run_personalised", "run_pooled"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_continues_with_the_same_numbers(
    config: ExperimentConfig,
    cache: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(f"simulations.federated.experiment.{stage}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rerun(config, out, cache, SerialExecutor())
    assert not (out / "results.json").exists()
    assert rerun(config, out, cache, SerialExecutor(), resume=True) == numbers(finished)


def test_an_interruption_among_the_devices_repeats_only_the_missing_ones(
    config: ExperimentConfig,
    cache: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, done = tmp_path / "out", []
    train = arms.train_individual

    def counted(dataset: Any, *rest: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(dataset.index)
        return train(dataset, *rest)

    monkeypatch.setattr(arms, "train_individual", counted)
    with pytest.raises(KeyboardInterrupt):
        rerun(config, out, cache, SerialExecutor())
    monkeypatch.setattr(arms, "train_individual", train)
    kept = out / "fold-0" / "arms" / "individual" / "device-0000.json"
    before = kept.stat().st_mtime_ns
    assert rerun(config, out, cache, SerialExecutor(), resume=True) == numbers(finished)
    assert kept.stat().st_mtime_ns == before


def test_a_finished_or_foreign_folder_is_not_touched(
    config: ExperimentConfig, cache: Path, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(FedspkError, match="--resume"):
        rerun(config, finished, cache, SerialExecutor())
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FedspkError, match="is not empty"):
        rerun(config, tmp_path, cache, SerialExecutor())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resuming_with_another_configuration_names_the_field(cache: Path, finished: Path) -> None:
    other = load_config("default", None, TINY | {"federated.rounds": 3})
    with pytest.raises(FedspkError, match=r"another federated\.rounds \(now 3\)"):
        rerun(other, finished, cache, SerialExecutor(), resume=True)


def with_generator(path: Path, **changes: Any) -> ExperimentConfig:
    given = {"generator": path, "impostors": ["speech", "gan"], "invented_speakers": 5}
    arms = {"arms": ["individual", "federated", "personalised"]}
    return load_config("default", None, TINY | given | arms | changes)


def test_devices_train_against_invented_voices_too(cache: Path, tmp_path: Path) -> None:
    path = make_generator(tmp_path / "generator.safetensors", front_end=FrontEndConfig())
    found = rerun(with_generator(path), tmp_path / "out", cache, SerialExecutor())
    assert set(found["summary"]) == {
        *("individual", "federated", "personalised"),
        *("individual-gan", "federated-gan", "personalised-gan"),
    }
    pairs = {(row["a"], row["b"]) for row in found["tests"]}
    assert ("individual", "federated-gan") in pairs
    assert (tmp_path / "out" / "figures" / "impostors.png").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "federated to federated-gan: paired t-test p = " in page
    again = rerun(with_generator(path), tmp_path / "again", cache, SerialExecutor())
    assert again["devices"] == found["devices"]


def test_a_generator_that_will_not_do_is_said_before_anything_is_done(
    cache: Path, tmp_path: Path
) -> None:
    absent = with_generator(tmp_path / "absent.safetensors")
    with pytest.raises(FedspkError, match="absent"):
        rerun(absent, tmp_path / "out", cache, SerialExecutor())
    deaf = make_generator(tmp_path / "generator.safetensors")
    with pytest.raises(FedspkError, match="trained with the encoder's front end"):
        rerun(with_generator(deaf), tmp_path / "out", cache, SerialExecutor())
    assert not (tmp_path / "out").exists()


def test_a_generator_that_has_heard_a_test_is_refused(cache: Path, tmp_path: Path) -> None:
    corpus = examine(open_corpus(TINY["corpus"]), FeatureCache(cache))
    marks = [utterance.mark for utterance in corpus.utterances]
    front_end, path = FrontEndConfig(), tmp_path / "generator.safetensors"
    make_generator(path, front_end=front_end, heard=marks)
    with pytest.raises(FedspkError, match=r"was trained on .* of the utterances that this"):
        rerun(with_generator(path), tmp_path / "out", cache, SerialExecutor())


def test_public_speakers_may_come_from_a_corpus_of_their_own(cache: Path, tmp_path: Path) -> None:
    for name, seed in (("owners", 1), ("public", 2)):
        corpus = open_corpus("synthetic:speakers=5,utterances=6,sessions=2", seed=seed)
        for utterance in corpus.utterances:
            file = tmp_path / name / f"{name}-{utterance.id}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, corpus.load(utterance), 16_000)
    places = {"corpus": str(tmp_path / "owners"), "public_corpus": str(tmp_path / "public")}
    quick = {"arms": ["initial"], "devices": 2, "folds": 1}
    config = load_config("default", None, TINY | places | quick)
    found = rerun(config, tmp_path / "out", cache, SerialExecutor())
    assert found["corpus"]["public_speakers"] == 5
    assert found["corpus"]["speakers"] == 2 + 5 + found["corpus"]["outsiders"]
    same = load_config("default", None, TINY | places | quick | {"public_corpus": config.corpus})
    with pytest.raises(FedspkError, match="public speakers must be others than the owners"):
        rerun(same, tmp_path / "same", cache, SerialExecutor())
    mixed = load_config("default", None, TINY | {"public_corpus": places["public_corpus"]})
    with pytest.raises(FedspkError, match="two folders of files"):
        rerun(mixed, tmp_path / "mixed", cache, SerialExecutor())


def test_the_papers_way_with_client_speech_only_and_a_shared_binary_head(
    cache: Path, tmp_path: Path
) -> None:
    paper = {k: v for k, v in TINY.items() if not k.startswith(("pretrain", "pooled"))}
    changes = {
        "run.encoder": "vggm-small",
        "run.encoder_params": {},
        "run.local_steps": 2,
        "impostors": ["speech", "none"],
        "federated.rounds": 1,
    }
    config = load_config("paper", None, paper | changes)
    found = rerun(config, tmp_path / "out", cache, SerialExecutor())
    assert set(found["summary"]) == {
        "initial",
        "individual",
        "averaged",
        "federated",
        "individual-none",
        "averaged-none",
        "federated-none",
    }


def test_a_second_run_decodes_and_extracts_nothing(
    config: ExperimentConfig, cache: Path, finished: Path, tmp_path: Path
) -> None:
    assert finished.exists()
    before = sorted(cache.rglob("*"))
    assert before
    initial = config.model_copy(update={"arms": ("initial",)})
    rerun(initial, tmp_path / "out", cache, SerialExecutor())
    assert sorted(cache.rglob("*")) == before


def test_the_federated_model_starts_another_run(
    config: ExperimentConfig, cache: Path, finished: Path, tmp_path: Path
) -> None:
    model = finished / "fold-0" / "models" / "federated.safetensors"
    later = config.model_copy(update={"arms": ("initial",), "init": model})
    found = rerun(later, tmp_path / "out", cache, SerialExecutor())
    federated = read_json(finished / "results.json")["summary"]["federated"]
    assert found["summary"]["initial"]["mean_eer"] == federated["mean_eer"]
