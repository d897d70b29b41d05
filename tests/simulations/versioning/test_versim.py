"""`fedspk versim`: what it writes and prints, and what a mistake gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typed_commands

from fedspk.cli import run

SMALL = ("--runs", "12", "--hours", "0.5", "--seed", "3", "--jobs", "1")
PINNED = (
    *("backward_bounce_rate", "latency_mean_s", "latency_max_s", "latency_p99_s"),
    *("gflops_per_request", "reenrolments", "cross_version_scorings", "worker_share"),
)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return typed_commands.fails(capsys, "versim", *arguments)


def simulated(out: Path, *arguments: str) -> Any:
    assert run(["versim", *SMALL, *arguments, "--out", str(out)]) == 0
    return json.loads((out / "results.json").read_text())


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["versim", "--help"]) == 0
    assert "Example: fedspk versim" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("model", ["default", "compat"])
def test_five_strategies_are_simulated_and_one_recommended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str
) -> None:
    results = simulated(tmp_path, "--model", model)
    assert set(results["strategies"]) == {"SSO", "SSO-sync", "SSO-hash", "SSO-mul", "SD"}
    for strategy in results["strategies"].values():
        for metric in PINNED:
            assert set(strategy[metric]) == {"mean", "std", "ci95", "per_run"}
            assert len(strategy[metric]["per_run"]) == 12
    requests = [row["requests"]["per_run"] for row in results["strategies"].values()]
    assert model == "compat" or all(each == requests[0] for each in requests)  # common draws
    printed = capsys.readouterr().out
    assert results["recommendation"]["text"] in printed
    assert str(tmp_path / "report.html") in printed
    assert results["recommendation"]["text"] in (tmp_path / "report.html").read_text()


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    arguments = ("--strategies", "SSO-sync,SD", "--sweep", "sync-interval=60,600")
    results = simulated(tmp_path / "1", *arguments)
    simulated(tmp_path / "2", *arguments, "--jobs", "2")
    for name in ("results.json", "report.html"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    points = {point["value"]: point["strategies"] for point in results["sweep"]["points"]}
    assert list(points) == ["60", "600"]
    assert points["600"] == results["strategies"]  # 600 s is the configuration's own interval
    assert points["60"] != results["strategies"]


def test_flags_override_a_speakerversim_file_and_json_is_what_results_hold(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "example_config.yml"
    file.write_text("strategy: SSO\nnum_cloud_workers: 4\nnum_users: 3\n")
    results = simulated(tmp_path / "out", "--config", str(file), "--workers", "6", "--json")
    assert json.loads(capsys.readouterr().out) == results
    assert results["config"]["model"] == "compat"
    assert (results["config"]["workers"], results["config"]["users"]) == (6, 3)
    assert set(results["strategies"]) == {"SSO"}


def test_nonsense_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    assert "interval" in fails(capsys, "--interval", "-1", *out)
    assert "SSO-best" in fails(capsys, "--strategies", "SSO-best", *out)
    assert "strategies" in fails(capsys, "--strategies", ",", *out)
    assert "runs" in fails(capsys, "--runs", "0", *out)
    assert "workers" in fails(capsys, "--workers", "-3", *out)
    assert "hours" in fails(capsys, "--hours", "nan", *out)
    assert "--sweep" in fails(capsys, "--sweep", "workers", *out)
    assert "wokers is unknown" in fails(capsys, "--sweep", "wokers=1,2", *out)
    assert "groups" in fails(capsys, "--sweep", "groups=1,99", *out)
    assert "give it once" in fails(capsys, "--sweep", "users=1,2", "--sweep", "workers=1,2", *out)
    assert "true and false" in fails(capsys, "--sweep", "workers=true,2", *out)
    assert "absent" in fails(capsys, "--config", str(tmp_path / "absent.toml"), *out)
    assert "--out" in fails(capsys)
    assert "give a longer interval" in fails(capsys, "--interval", "1e-9", *out)
    assert "users: Input should be less" in fails(capsys, "--sweep", "users=1e14", *out)
    assert "users: Input should be less" in fails(capsys, "--users", "100000000000000", *out)
    assert "workers: Input should be less" in fails(capsys, "--workers", "100000000000000", *out)
    assert not (tmp_path / "out").exists()


def test_more_groups_than_workers_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "groups.toml"
    file.write_text('strategies = ["SD-group"]\ngroups = 20\n')
    error = fails(capsys, "--config", str(file), "--out", str(tmp_path / "out"))
    assert "20 groups" in error


def test_an_out_that_is_a_file_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in fails(capsys, "--runs", "100000", "--out", str(tmp_path / "file"))
