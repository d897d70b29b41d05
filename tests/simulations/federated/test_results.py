"""From trial scores to summary, rows, tests and the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedspk.errors import FedspkError
from simulations.federated.comparison import compare_runs, comparison_table
from simulations.federated.report import best_arm, summary_table, verdict, write_report
from simulations.federated.results import (
    ArmCost,
    ArmResult,
    Json,
    compare_arms,
    device_rows,
    summarise,
)
from simulations.federated.secure import secure_summary
from simulations.federated.trials import (
    DeviceErrors,
    DeviceScores,
    TrialScores,
    device_errors,
    load_scores,
    pooled_scores,
    save_scores,
)

SPEAKERS = [f"s{i}" for i in range(8)]


def device_scores(seed: int, distance: float, classifier: bool = True) -> DeviceScores:
    rng = np.random.default_rng(seed)

    def draw() -> TrialScores:
        return TrialScores(
            rng.normal(distance, 1, 40).astype(np.float32), rng.normal(0, 1, 200).astype(np.float32)
        )

    scores: dict[str, TrialScores] = {
        name: draw() for name in ("sessions", "within_session", "outsiders")
    }
    if classifier:
        scores["classifier"] = draw()
    return scores  # type: ignore[return-value]


def arm(name: str, distance: float, classifier: bool = True) -> ArmResult:
    errors = tuple(
        device_errors([device_scores(i, distance, classifier)], seed=0) for i in range(8)
    )
    return ArmResult(name, errors, ArmCost(steps=10, seconds=2.5, bytes=1_000_000))


def sums(purpose: str, devices: int, **changes: object) -> Json:
    """The record of a round's secure sums."""
    stages = ("offer", "share", purpose, "survivors", "unmask", "sum")
    return {
        "purpose": purpose,
        "cohorts": [devices],
        "survivors": [devices - 1],
        "attempts": 1,
        "discarded": 0,
        "clipped": 0.25 if purpose == "train" else None,
        "seconds": dict.fromkeys(stages, 0.5),
        "bytes_down": 100,
        "bytes_up": 1000,
        **changes,
    }


HISTORY: list[Json] = [
    {"round": 0, "train_loss": None, "validation_loss": 2.0, "secure": [sums("evaluate", 10)]},
    {"round": 1, "train_loss": 1.5, "validation_loss": None, "secure": [sums("train", 6)]},
    {
        "round": 2,
        "train_loss": 1.4,
        "validation_loss": 1.0,
        "secure": [sums("train", 5, attempts=2, seconds={"train": 1.5}), sums("evaluate", 10)],
    },
]


@pytest.fixture(scope="module")
def results() -> Json:
    arms = [arm("initial", 1.0, classifier=False), arm("individual", 1.5), arm("federated", 3.0)]
    rows = device_rows(SPEAKERS, arms)
    return {
        "summary": {each.name: summarise(each, seed=0) for each in arms},
        "devices": rows,
        "tests": compare_arms(rows),
        "history": {"federated": HISTORY},
        "secure": {"federated": secure_summary(HISTORY, "Noise says so.")},
        "corpus": {
            "name": "made",
            "fingerprint": "0" * 32,
            "speakers": 20,
            "utterances": 400,
            "public_speakers": 8,
            "outsiders": 4,
            "owners_tested_on_new_sessions": 0.0,
            "skipped": {"silent": 2},
        },
        "config": {"run": {"encoder": "tdnn"}, "seed": 0, "copies": 2},
        "models": {"initial": "0" * 64},
        "seed": 0,
        "versions": {"fedspk": "0.1.0"},
    }


def test_the_summary_is_the_mean_over_devices(results: Json) -> None:
    column = [row["eer"]["federated"] for row in results["devices"]]
    line = results["summary"]["federated"]
    assert line["mean_eer"] == pytest.approx(np.mean(column))
    assert line["mean_eer_interval"][0] < line["mean_eer"] < line["mean_eer_interval"][1]
    assert results["summary"]["initial"]["mean_eer_classifier"] is None


def test_results_are_plain_json(results: Json) -> None:
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_tests_cover_every_pair_that_both_measured(results: Json) -> None:
    found = {(e["a"], e["b"], e["metric"]) for e in results["tests"]}
    assert ("individual", "federated", "eer") in found
    assert ("individual", "federated", "eer_classifier") in found
    assert ("initial", "federated", "eer_classifier") not in found
    entry = next(e for e in results["tests"] if (e["a"], e["b"]) == ("individual", "federated"))
    assert {"test", "p_value", "relative_improvement", "devices_improved"} <= set(entry)


def test_the_verdict_names_the_arm_to_use_and_how_sure_that_is(results: Json) -> None:
    assert best_arm(results) == "federated"
    text = " ".join(verdict(results))
    assert "Use the federated model" in text
    assert "lower than the individual arm's" in text
    assert "significant" in text


def test_a_start_without_rivals_is_not_said_to_have_won(results: Json) -> None:
    alone = results | {"summary": {"initial": results["summary"]["initial"]}}
    assert verdict(alone) == [verdict(alone)[0]]
    assert "Use the initial model" in verdict(alone)[0]


def test_pooled_is_a_bound_and_never_the_advice(results: Json) -> None:
    better = results["summary"]["federated"] | {"mean_eer": 0.0}
    changed = results | {"summary": results["summary"] | {"pooled": better}}
    assert best_arm(changed) == "federated"


def test_the_page_is_self_contained_and_its_figures_lie_beside_it(
    results: Json, tmp_path: Path
) -> None:
    scores = {name: pooled_scores([device_scores(0, 2.0)]) for name in results["summary"]}
    page = write_report(tmp_path, results, scores).read_text()
    assert page.count("<svg") == 4
    assert "src=" not in page
    assert "sums over cohorts of 5 devices or more" in page
    assert "Noise says so." in page
    assert "2 silent" in page
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {
        f"{n}.{e}" for n in ("devices", "boxes", "det", "learning") for e in ("png", "svg")
    }


def test_secure_sums_are_summed_up_by_what_was_summed() -> None:
    found = secure_summary(HISTORY, None)
    assert found is not None
    assert (found["smallest_cohort"], found["privacy"]) == (5, None)
    updates, validation = found["updates"], found["validation"]
    assert (updates["rounds"], updates["smallest_cohort"], updates["largest_cohort"]) == (2, 5, 6)
    assert updates["survivors"] == pytest.approx(9 / 11)
    assert (updates["retried"], updates["clipped"], updates["bytes_up"]) == (1, 0.25, 2000)
    assert updates["seconds"]["compute"] == 1.0
    assert updates["seconds"]["offer"] == 0.25
    assert (validation["rounds"], validation["clipped"]) == (2, None)


def test_the_page_tells_rounds_that_failed(results: Json, tmp_path: Path) -> None:
    scores = {name: pooled_scores([device_scores(0, 2.0)]) for name in results["summary"]}
    assert "Rounds that failed" not in write_report(tmp_path, results, scores).read_text()
    failed = {**HISTORY[2], "round": 3, "failure": "Round 3: no secure sum was finished."}
    changed = results | {"history": {"federated": [*HISTORY, failed]}}
    page = write_report(tmp_path, changed, scores).read_text()
    assert "Arm federated: Round 3: no secure sum was finished." in page


def test_a_page_on_updates_sent_in_clear_says_so(results: Json, tmp_path: Path) -> None:
    in_clear = [record | {"secure": ()} for record in HISTORY]
    assert secure_summary(in_clear, None) is None
    scores = {name: pooled_scores([device_scores(0, 2.0)]) for name in results["summary"]}
    changed = results | {"secure": {"federated": None}}
    assert "sent their updates in clear" in write_report(tmp_path, changed, scores).read_text()
    alone = results | {"secure": {}, "history": {}}
    assert "Secure aggregation" not in write_report(tmp_path, alone, scores).read_text()


def test_the_table_has_a_line_an_arm(results: Json) -> None:
    lines = summary_table(results).splitlines()
    assert [line.split()[0] for line in lines] == ["arm", "initial", "individual", "federated"]


def test_folds_are_averaged_per_device() -> None:
    one, two = device_scores(0, 1.0), device_scores(1, 3.0)
    mean = np.mean([device_errors([fold], seed=0).eer for fold in (one, two)])
    assert device_errors([one, two], seed=0).eer == pytest.approx(mean)


def test_scores_survive_the_file_and_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    devices = [device_scores(0, 1.0), device_scores(1, 1.0, classifier=False)]
    save_scores(path, devices)
    found = load_scores(path, 2)
    assert "classifier" not in found[1]
    np.testing.assert_array_equal(found[0]["sessions"].target, devices[0]["sessions"].target)
    with pytest.raises(FedspkError, match=r"scores\.npz"):
        load_scores(path, 3)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FedspkError, match=r"scores\.npz"):
        load_scores(path, 2)


def write_run(folder: Path, results: Json, **changes: object) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results | changes))
    return folder


def test_two_runs_are_compared_arm_by_arm_over_shared_devices(
    results: Json, tmp_path: Path
) -> None:
    first = write_run(tmp_path / "a", results)
    other = device_rows(SPEAKERS[:5], [arm("federated", 4.0)])
    second = write_run(tmp_path / "b", results, devices=other)
    entries = compare_runs(first, second)
    assert {(e["a"], e["b"]) for e in entries} == {("federated", "federated")}
    assert {e["devices"] for e in entries} == {5}
    assert next(e for e in entries if e["metric"] == "eer")["relative_improvement"] > 0
    assert "federated" in comparison_table(entries)


def test_runs_without_common_devices_or_results_are_one_sentence(
    results: Json, tmp_path: Path
) -> None:
    first = write_run(tmp_path / "a", results)
    rows = [row | {"speaker": f"other{i}"} for i, row in enumerate(results["devices"])]
    second = write_run(tmp_path / "b", results, devices=rows)
    with pytest.raises(FedspkError, match="share 0 device owners"):
        compare_runs(first, second)
    with pytest.raises(FedspkError, match=r"holds no results\.json"):
        compare_runs(first, tmp_path)


def test_errors_are_per_cent() -> None:
    errors = device_errors([device_scores(0, 0.0)], seed=0)
    assert isinstance(errors, DeviceErrors)
    assert 30 < errors.eer < 70
