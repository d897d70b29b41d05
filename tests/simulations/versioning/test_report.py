"""The page and its figures, from made runs."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made_runs import made_run

from simulations.versioning.config import VersioningConfig
from simulations.versioning.recommendation import recommend
from simulations.versioning.report import summary_table, write_report
from simulations.versioning.results import (
    Batch,
    Json,
    comparisons,
    reduce_run,
    strategy_results,
)
from simulations.versioning.run import BINS


def batch(slower: float, *, queue: float = 0.0, work: float = 0.25, runs: int = 4) -> Batch:
    waiting = np.zeros((2, BINS))
    waiting[0, 10:20] = queue
    rng = np.random.default_rng(0)
    whole: Batch | None = None
    for run in range(runs):
        latency = rng.normal(1, 0.1, 4) * slower
        one = reduce_run(
            made_run(
                latency_s=latency,
                backward_bounces=0,
                queue_length=waiting,
                utilisation=np.full((2, BINS), work),
                consistent_after_s=None if run == 0 else 600.0 * run,
            ),
            first=run == 0,
        )
        if whole is None:
            whole = one
        else:
            whole.add(one)
    assert whole is not None
    return whole


def page(folder: Path, batches: dict[str, Batch], sweep: Json | None = None) -> str:
    strategies = strategy_results(batches)
    results: Json = {
        "config": VersioningConfig().model_dump(mode="json"),
        "strategies": strategies,
        "comparisons": comparisons(strategies),
        "recommendation": asdict(recommend(strategies, queues=True)),
        "sweep": sweep,
        "versions": {"fedspk": "0"},
    }
    return write_report(folder, results, batches).read_text()


BATCHES = {"SSO": batch(2.0), "SSO-sync": batch(30.0, queue=12.0), "SD": batch(1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished report of `BATCHES`."""
    made = tmp_path_factory.mktemp("report")
    page(made, BATCHES)
    return made


def test_the_page_is_one_file_with_the_recommendation_and_every_strategy(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "Use SD: mean latency" in text
    for name in BATCHES:
        assert f"<th>{name}</th>" in text
    assert text.count("<svg") == text.count("<figure>") == 11
    assert not re.search(r"(src|href)=\"(http|//)", text.replace("xlink:href", ""))
    assert "NaN" not in text and "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.S)


def test_figures_lie_beside_the_page_as_png_and_svg(folder: Path) -> None:
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert names == {path.stem for path in (folder / "figures").glob("*.png")}
    twins = {"backward_bounce_rate", "latency_mean_s", "latency_max_s", "gflops_per_request"}
    twins |= {"request_latency", "request_gflops", "workers"}
    assert twins | {"latency_cdf", "queues", "longest_queue", "consistency"} == names


def test_the_same_runs_make_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    page(tmp_path, BATCHES)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


def test_a_sweep_has_tables_and_lines(tmp_path: Path) -> None:
    results = strategy_results(BATCHES)
    points = [{"value": value, "strategies": results} for value in ("10", "500")]
    text = page(tmp_path, BATCHES, {"key": "sync_interval", "points": points})
    assert "By sync interval" in text
    assert "<td>500</td>" in text
    assert (tmp_path / "figures" / "sweep_latency_mean_s.svg").exists()


def test_a_sweep_of_words_has_tables_and_no_lines(tmp_path: Path) -> None:
    results = strategy_results(BATCHES)
    points = [{"value": value, "strategies": results} for value in ("rolling", "canary")]
    text = page(tmp_path, BATCHES, {"key": "rollout.kind", "points": points})
    assert "<td>canary</td>" in text
    assert not (tmp_path / "figures" / "sweep_latency_mean_s.svg").exists()


def test_where_nobody_waits_no_queue_is_drawn(tmp_path: Path) -> None:
    text = page(tmp_path, {"SSO": batch(1.0)})
    assert "No request ever waited" in text
    assert not (tmp_path / "figures" / "queues.svg").exists()


def test_a_single_run_of_one_idle_strategy_is_a_page_too(tmp_path: Path) -> None:
    text = page(tmp_path, {"device": batch(1.0, work=0.0, runs=1)})
    assert "Use device" in text and "first impression" in text
    assert "Strategies in pairs" not in text


def test_a_strategy_that_answers_nothing_is_a_page_too(tmp_path: Path) -> None:
    silent = reduce_run(made_run(failed=4, latency_s=np.full(4, np.nan)), first=True)
    text = page(tmp_path, {"SSO": silent})
    assert "No recommendation" in text


@pytest.mark.parametrize("name", ["SSO", "SSO-sync", "SD"])
def test_the_terminal_table_has_a_line_a_strategy(name: str) -> None:
    table = summary_table(strategy_results(BATCHES))
    widths = {len(line) for line in table.splitlines()}
    assert len(widths) == 1
    assert sum(line.split()[0] == name for line in table.splitlines()) == 1
