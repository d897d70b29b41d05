"""The page people look at: one self-contained HTML file, its figures beside it as PNG and SVG."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedspk.files import write_text
from fedspk.page import page_template, show_figure
from simulations.versioning import figures
from simulations.versioning.results import (
    BY_NAME,
    COMPARED,
    Batch,
    FirstRun,
    Json,
    latency_curve,
)
from simulations.versioning.strategies import get_strategy

_IN_TABLE = (
    *("backward_bounce_rate", "latency_mean_s", "latency_p50_s", "latency_p95_s"),
    *("latency_p99_s", "latency_max_s", "gflops_per_request", "reenrolments_foreground"),
    *("reenrolments_background", "cross_version_scorings", "failed_rate", "downtime_s"),
    *("worker_share", "utilisation_peak", "queue_peak", "consistent_after_s", "consistent"),
)
_IN_TERMINAL = (
    ("backward_bounce_rate", "bounces %"),
    ("latency_mean_s", "mean s"),
    ("latency_p99_s", "p99 s"),
    ("latency_max_s", "max s"),
    ("gflops_per_request", "Gflops"),
    ("reenrolments", "re-enrol"),
    ("cross_version_scorings", "cross-ver"),
    ("failed_rate", "failed %"),
    ("queue_peak", "queue"),
)
_SWEPT = ("latency_mean_s", "backward_bounce_rate", "latency_p99_s", "gflops_per_request")


def write_report(folder: Path, results: Json, batches: Mapping[str, Batch]) -> Path:
    """Write `report.html` and `figures/` for a finished simulation.

    Args:
        folder: the run's folder.
        results: what `results.json` holds.
        batches: the runs behind `strategies`, by strategy.
    """
    config = results["config"]
    page = page_template(Path(__file__).parent, words=_words).render(
        config=config,
        recommendation=results["recommendation"],
        strategies=results["strategies"],
        summaries={name: get_strategy(name).summary for name in results["strategies"]},
        metrics=[BY_NAME[name] for name in _IN_TABLE],
        compared=[
            (BY_NAME[name], [row for row in results["comparisons"] if row["metric"] == name])
            for name in COMPARED
        ],
        sweep=results["sweep"],
        swept=[BY_NAME[name] for name in _SWEPT],
        figures=[
            show_figure(folder / "figures", name, title, figure, caption)
            for name, title, figure, caption in _figures(results, batches)
            if figure is not None
        ],
        queues=_queues(batches),
        provenance=json.dumps({key: results[key] for key in ("config", "versions")}, indent=2),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def summary_table(strategies: Mapping[str, Json]) -> str:
    """Return the means over runs as a plain-text table for the terminal."""
    header = ("strategy", *(title for _, title in _IN_TERMINAL))
    rows = [
        (name, *(BY_NAME[metric].show(row[metric]["mean"]) for metric, _ in _IN_TERMINAL))
        for name, row in strategies.items()
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    )


_Drawn = tuple[str, str, Figure | None, str]


def _figures(results: Json, batches: Mapping[str, Batch]) -> Iterator[_Drawn]:
    """Yield name, title, figure (None: nothing to draw) and caption."""
    sweep = results["sweep"]
    if sweep is not None:
        groups = {point["value"]: point["strategies"] for point in sweep["points"]}
        for metric in _SWEPT:
            yield (
                f"sweep_{metric}",
                f"{_capital(BY_NAME[metric].label)} by {_words(sweep['key'])}",
                figures.sweep_lines(groups, sweep["key"], metric),
                "Mean over runs, the band is its 95 % interval.",
            )
        by = f", one for each {_words(sweep['key'])}"
    else:
        groups, by = {"": results["strategies"]}, ""
    yield from _box_figures(groups, by)
    yield from _request_figures(batches)
    yield from _time_figures(results, batches)


def _box_figures(groups: figures.Groups, by: str) -> Iterator[_Drawn]:
    titles = {
        "backward_bounce_rate": "Backward version bounces",
        "latency_mean_s": "Mean latency of a run",
        "latency_max_s": "Maximal latency of a run",
        "gflops_per_request": "Computing a request",
    }
    for metric, title in titles.items():
        yield (
            metric,
            title,
            figures.run_boxes(groups, metric),
            f"Over the runs{by}. Box: quartiles; line: median; diamond: mean.",
        )


def _request_figures(batches: Mapping[str, Batch]) -> Iterator[_Drawn]:
    firsts = _firsts(batches)
    caption = "Over the requests of run 0. Box: quartiles; line: median; ends: least and most."
    yield (
        "request_latency",
        "Latency of single requests",
        figures.request_boxes({n: f.latency_s for n, f in firsts.items()}, "latency (s)"),
        caption,
    )
    yield (
        "request_gflops",
        "Computing of single requests",
        figures.request_boxes({n: f.gflops for n, f in firsts.items()}, "Gflops"),
        caption,
    )
    yield (
        "latency_cdf",
        "Distribution of the latency",
        figures.latency_cdf({name: latency_curve(batch) for name, batch in batches.items()}),
        "All requests of all runs: at a latency, the share that takes longer (1 - CDF). Further "
        "left is better; the tail at the bottom is what few users meet.",
    )


def _time_figures(results: Json, batches: Mapping[str, Batch]) -> Iterator[_Drawn]:
    hours = results["config"]["hours"]
    firsts = _firsts(batches)
    busy = {name: first for name, first in firsts.items() if np.any(first.utilisation)}
    loads = {name: first.utilisation for name, first in busy.items()}
    waiting = {name: first.queue_length for name, first in busy.items()}
    same = "Run 0; the workers are updated at the same times in every panel."
    yield (
        "workers",
        "Load of the workers",
        figures.heat_maps(loads, hours, "utilisation") if loads else None,
        "Share of a worker that is busy (jobs at a time, where workers are without limit), mean "
        f"over a sixtieth of the run. {same}",
    )
    yield (
        "queues",
        "Queues at the workers",
        figures.heat_maps(waiting, hours, "requests waiting") if _queues(batches) else None,
        f"Requests that wait, mean over a sixtieth of the run. {same}",
    )
    yield (
        "longest_queue",
        "The longest queue over time",
        figures.over_time(
            {name: batch.longest_queue / len(batch.metrics) for name, batch in batches.items()},
            hours,
            "requests waiting",
        )
        if _queues(batches)
        else None,
        "Of the worker with most requests waiting at the time, mean over all runs.",
    )
    yield (
        "consistency",
        "Time to consistency",
        figures.consistency(
            {
                name: row["consistent_after_s"]["per_run"]
                for name, row in results["strategies"].items()
            },
            hours,
        ),
        "Share of the runs in which every profile is of the newest version by then, and stays so. "
        "A line that ends below 100 %: the other runs ended first.",
    )


def _firsts(batches: Mapping[str, Batch]) -> dict[str, FirstRun]:
    return {name: batch.first for name, batch in batches.items() if batch.first is not None}


def _queues(batches: Mapping[str, Batch]) -> bool:
    """Return whether a request ever waited for another."""
    return any(bool(np.any(batch.longest_queue > 0)) for batch in batches.values())


def _words(key: str) -> str:
    return key.replace("_", " ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
