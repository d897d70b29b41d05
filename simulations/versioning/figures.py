"""The report's figures, each as PNG and SVG.

Box plots over runs and over requests, workers' load over time and sweeps follow what Figures 14 to
20 of Wang & Lopez Moreno, "Version control of speaker recognition systems", show; the latency CDF,
the queues and the time to consistency are ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fedspk.page import FIGURE_STYLE
from simulations.versioning.results import BY_NAME, FloatArray, Json

_COLOURS = {
    "SSO": "#d1603d",
    "SSO-sync": "#c9a227",
    "SSO-hash": "#2f9e6e",
    "SSO-mul": "#0b7285",
    "SD": "#2a6f97",
    "SD-group": "#7b5ea7",
    "offline": "#8a8f98",
    "hybrid-single": "#c2255c",
    "hybrid-single-handshake": "#e8789f",
    "hybrid-double": "#5c940d",
    "hybrid-double-handshake": "#9bc53d",
    "device": "#862e9c",
    "device-keep": "#c07ad6",
}
_OTHER_COLOURS = ("#b08900", "#364fc7", "#087f5b", "#a61e4d")
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2, 1, 2, 1, 2)))
_WIDTH = 5.0  # inches: on a phone's screen the letters stay readable
_LOG_FROM = 20.0  # values that differ by this factor are drawn on a logarithmic axis

Groups = Mapping[str, Mapping[str, Json]]
"""By a sweep's value as text (one, empty, without a sweep): `strategies` of `results.json`."""


def colour(strategy: str, position: int = 0) -> str:
    """Return the colour that stands for a strategy in every figure."""
    return _COLOURS.get(strategy, _OTHER_COLOURS[position % len(_OTHER_COLOURS)])


def run_boxes(groups: Groups, metric: str, title: str = "") -> Figure | None:
    """Plot the distribution of a metric over runs: a box a strategy and value of the sweep.

    Returns None where no run has a value.
    """
    shown = BY_NAME[metric]
    rows = [
        (
            name,
            label,
            [shown.scale * v for v in strategies[name][metric]["per_run"] if v is not None],
        )
        for name in next(iter(groups.values()))
        for label, strategies in groups.items()
    ]
    if not any(values for _, _, values in rows):
        return None
    statistics = [_box_statistics(values) for _, _, values in rows]
    labels = [(name, label) for name, label, _ in rows]
    unit = f" ({shown.unit})" if shown.unit else ""
    return _boxes(labels, statistics, f"{shown.label}{unit}", title)


def request_boxes(quantiles: Mapping[str, Sequence[float] | None], label: str) -> Figure | None:
    """Plot minimum, quartiles and maximum over the requests of one run, a box a strategy."""
    known = {name: values for name, values in quantiles.items() if values is not None}
    if not known:
        return None
    names = ("whislo", "q1", "med", "q3", "whishi")
    statistics: list[dict[str, Any] | None] = [
        {**dict(zip(names, values, strict=True)), "fliers": []} for values in known.values()
    ]
    return _boxes([(name, "") for name in known], statistics, label)


def latency_cdf(curves: Mapping[str, tuple[FloatArray, FloatArray]]) -> Figure | None:
    """Plot the share of requests that took longer, both axes logarithmic: the tail is visible.

    Returns None where no request was answered.
    """
    if not any(seconds.size for seconds, _ in curves.values()):
        return None
    with _figure(3.4 + _legend_height(curves)) as (figure, axes):
        for position, (name, (seconds, share)) in enumerate(curves.items()):
            if seconds.size:
                longer = np.append(1.0, 1 - share)
                axes.step(
                    np.append(seconds, seconds[-1]),
                    np.where(longer <= 0, np.nan, longer),
                    where="pre",
                    label=name,
                    **_line(name, position),
                )
        axes.set(xscale="log", yscale="log", xlabel="latency (s)")
        axes.set_ylabel("share of requests that take longer")
        _plain_log(axes.xaxis)
        _legend(figure, curves)
    return figure


def heat_maps(
    maps: Mapping[str, FloatArray], hours: float, label: str, most: float | None = None
) -> Figure:
    """Plot (workers, bins) over time, one panel a strategy, one scale for all.

    `most` is where the scale ends; by default at the greatest value of all.
    """
    columns = min(2, len(maps))
    rows = math.ceil(len(maps) / columns)
    top = most or max(1e-9, *(float(values.max(initial=0)) for values in maps.values()))
    with matplotlib.rc_context(FIGURE_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(_WIDTH, 0.7 + 1.45 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in panels.flat[len(maps) :]:
            axes.set_visible(False)
        for axes, (name, values) in zip(panels.flat, maps.items(), strict=False):
            image = axes.imshow(
                values,
                aspect="auto",
                origin="lower",
                interpolation="nearest",
                extent=(0, hours, 0.5, len(values) + 0.5),
                vmin=0,
                vmax=top,
                cmap="magma_r",
            )
            axes.set_title(name, fontsize=10, color=colour(name), fontweight="bold")
            axes.xaxis.set_tick_params(labelbottom=True)
        figure.supxlabel("hours", fontsize=10)
        figure.supylabel("worker", fontsize=10)
        figure.colorbar(image, ax=panels, label=label, shrink=0.8, pad=0.02)
        _lay_out(figure)
    return figure


def over_time(lines: Mapping[str, FloatArray], hours: float, label: str) -> Figure:
    """Plot one value a bin of time and strategy."""
    with _figure(2.9 + _legend_height(lines)) as (figure, axes):
        for position, (name, values) in enumerate(lines.items()):
            middles = (np.arange(len(values)) + 0.5) * hours / len(values)
            axes.plot(middles, values, label=name, **_line(name, position))
        axes.set(xlabel="hours", ylabel=label, xlim=(0, hours))
        axes.set_ylim(bottom=0)
        _legend(figure, lines)
    return figure


def consistency(times: Mapping[str, Sequence[float | None]], hours: float) -> Figure:
    """Plot the share of runs in which all profiles are of the newest version by then.

    times: seconds since the rollout began, by run; None where a run ended before.
    """
    with _figure(2.9 + _legend_height(times)) as (figure, axes):
        for position, (name, values) in enumerate(times.items()):
            reached = np.sort([value / 3600 for value in values if value is not None])
            share = np.arange(1, len(reached) + 1) / len(values)
            axes.step(
                np.concatenate([[0.0], reached, [max(hours, *reached, 0.0)]]),
                np.concatenate([[0.0], share, share[-1:] if len(reached) else [0.0]]),
                where="post",
                label=name,
                **_line(name, position),
            )
        axes.set(xlabel="hours since the rollout began", ylabel="runs that are consistent")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _legend(figure, times)
    return figure


def sweep_lines(groups: Groups, key: str, metric: str) -> Figure | None:
    """Plot a metric's mean with its 95 % interval against the values of a sweep.

    Returns None where the values are no numbers or no strategy has a mean.
    """
    shown = BY_NAME[metric]
    try:
        at = np.array([float(value) for value in groups])
    except ValueError:
        return None
    order = np.argsort(at, kind="stable")
    drawn = False
    with _figure(2.9 + _legend_height(next(iter(groups.values())))) as (figure, axes):
        for position, name in enumerate(next(iter(groups.values()))):
            cells = [strategies[name][metric] for strategies in groups.values()]
            if any(cell["mean"] is None for cell in cells):
                continue
            drawn = True
            mean = shown.scale * np.array([cell["mean"] for cell in cells])
            low, high = (
                shown.scale
                * np.array([cell["ci95"] or (cell["mean"], cell["mean"]) for cell in cells]).T
            )
            style = _line(name, position)
            axes.plot(at[order], mean[order], marker="o", ms=4, label=name, **style)
            axes.fill_between(
                at[order], low[order], high[order], color=style["color"], alpha=0.15, lw=0
            )
        if np.all(at > 0) and at.max() / at.min() >= _LOG_FROM:
            axes.set_xscale("log")
            _plain_log(axes.xaxis)
        unit = f" ({shown.unit})" if shown.unit else ""
        axes.set(xlabel=key.replace("_", " "), ylabel=f"{shown.label}{unit}")
        _legend(figure, next(iter(groups.values())))
    return figure if drawn else None


def _boxes(
    labels: Sequence[tuple[str, str]],
    statistics: Sequence[dict[str, Any] | None],
    label: str,
    title: str = "",
) -> Figure:
    """Draw horizontal boxes from the top down; rows of one strategy stand together."""
    strategies = list(dict.fromkeys(name for name, _ in labels))
    each = len(labels) // len(strategies)
    places = [
        strategies.index(name) + (i % each + 0.5) / each for i, (name, _) in enumerate(labels)
    ]
    with _figure(0.8 + 0.25 * len(strategies) + 0.17 * len(labels)) as (figure, axes):
        for place, (name, _), values in zip(places, labels, statistics, strict=True):
            if values is None:
                continue
            drawn = axes.bxp(
                [values],
                positions=[place],
                widths=0.7 / each,
                orientation="horizontal",
                patch_artist=True,
                showmeans="mean" in values,
                medianprops={"color": "black"},
                meanprops={"marker": "D", "ms": 4, "mfc": "white", "mec": "black"},
                flierprops={"marker": ".", "ms": 3, "mec": colour(name), "alpha": 0.5},
                manage_ticks=False,
            )
            drawn["boxes"][0].set(facecolor=colour(name), alpha=0.65)
        axes.set_yticks(places if each > 1 else [i + 0.5 for i in range(len(strategies))])
        axes.set_yticklabels([f"{name}  {text}" if text else name for name, text in labels])
        axes.set_ylim(len(strategies) + 0.1, -0.1)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=label, title=title)
        _scale(axes, [values for values in statistics if values is not None])
    return figure


def _box_statistics(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    quartiles = np.quantile(values, (0.25, 0.5, 0.75))
    reach = 1.5 * (quartiles[2] - quartiles[0])
    inside = [v for v in values if quartiles[0] - reach <= v <= quartiles[2] + reach]
    low, high = min(inside, default=quartiles[0]), max(inside, default=quartiles[2])
    return {
        "mean": float(np.mean(values)),
        "q1": quartiles[0],
        "med": quartiles[1],
        "q3": quartiles[2],
        "whislo": low,
        "whishi": high,
        "fliers": [v for v in values if v < low or v > high],
    }


def _scale(axes: Axes, statistics: Sequence[Mapping[str, Any]]) -> None:
    lows = [min([values["whislo"], *values["fliers"]]) for values in statistics]
    highs = [max([values["whishi"], *values["fliers"]]) for values in statistics]
    if min(lows) > 0 and max(highs) / min(lows) > _LOG_FROM:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    else:
        axes.set_xlim(left=0)


def _plain_log(axis: Any) -> None:
    """Write 0.5 and 20 on a logarithmic axis, not powers of ten."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _line(name: str, position: int) -> dict[str, Any]:
    dashes = _DASHES[position % len(_DASHES)]
    return {"color": colour(name, position), "ls": dashes, "lw": 1.8}


def _legend(figure: Figure, names: Collection[str]) -> None:
    """Name the lines above the plot, in as many columns as the names leave room for."""
    figure.legend(frameon=False, ncols=_legend_columns(names), loc="outside upper left", fontsize=9)


def _legend_height(names: Collection[str]) -> float:
    return 0.2 * math.ceil(len(names) / _legend_columns(names))


def _legend_columns(names: Collection[str]) -> int:
    return 3 if max(map(len, names), default=0) < 12 else 2


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    # A Figure without pyplot: no display, no global state, safe in any thread.
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, figure.subplots()
        _lay_out(figure)


def _lay_out(figure: Figure) -> None:
    """Find the places of everything once, not again for each format it is saved in."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
