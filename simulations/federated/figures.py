"""The report's figures, each as PNG and SVG: per-device lines, box plots, DET, learning curve.

The first three are the twins of Figures 2, 3 and 4 of Woubie & Bäckström, "Federated learning
for privacy-preserving speaker recognition" (IEEE Access 9, 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from fedspk.metrics import DETCurve
from fedspk.page import FIGURE_STYLE

_COLOURS = {
    "initial": "#8a8f98",
    "individual": "#d1603d",
    "averaged": "#c9a227",
    "federated": "#2a6f97",
    "personalised": "#2f9e6e",
    "pooled": "#7b5ea7",
}
_OTHER_COLOURS = ("#b08900", "#c2255c", "#0b7285", "#5c940d", "#862e9c")
_DET_TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4)


def colour(arm: str, position: int = 0) -> str:
    """Return the colour that stands for `arm` in every figure."""
    return _COLOURS.get(arm, _OTHER_COLOURS[position % len(_OTHER_COLOURS)])


def device_lines(eer: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Plot each arm's EER (per cent) against the device, devices sorted by the first arm."""
    with _figure((8.5, 3.8)) as (figure, axes):
        first = np.asarray(next(iter(eer.values())))
        order = np.argsort(first, kind="stable")
        ticks = np.arange(1, len(order) + 1)
        for position, (arm, values) in enumerate(eer.items()):
            shade = colour(arm, position)
            axes.plot(
                ticks, np.asarray(values)[order], marker="o", ms=4, lw=1.6, color=shade, label=arm
            )
            axes.axhline(float(np.mean(values)), color=shade, lw=0.9, ls="--", alpha=0.7)
        axes.set(xlabel=f"device (sorted by {next(iter(eer))})", ylabel="EER (%)", title=title)
        axes.set_xlim(0.5, len(order) + 0.5)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, ncols=min(3, len(eer)))
    return figure


def box_plots(eer: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Plot the distribution over devices of each arm's EER (per cent), mean as a diamond."""
    with _figure((1.6 + 1.25 * len(eer), 3.8)) as (figure, axes):
        drawn = axes.boxplot(
            list(eer.values()),
            tick_labels=list(eer),
            patch_artist=True,
            showmeans=True,
            widths=0.55,
            medianprops={"color": "black"},
            meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black"},
        )
        for position, (arm, box) in enumerate(zip(eer, drawn["boxes"], strict=True)):
            box.set(facecolor=colour(arm, position), alpha=0.65)
        axes.set(ylabel="EER (%)", title=title)
        axes.set_ylim(bottom=0)
        axes.tick_params(axis="x", rotation=20 if len(eer) > 4 else 0)
    return figure


def det_plot(curves: Mapping[str, DETCurve], title: str) -> Figure:
    """Plot detection error trade-off curves on normal-deviate axes (Martin et al. 1997)."""
    with _figure((5.2, 4.8)) as (figure, axes):
        low, high = (float(norm.ppf(rate)) for rate in (_DET_TICKS[0], 0.5))
        for position, (arm, curve) in enumerate(curves.items()):
            inside = np.clip([curve.false_alarm, curve.miss], 1e-5, 1 - 1e-5)
            axes.plot(
                norm.ppf(inside[0]),
                norm.ppf(inside[1]),
                color=colour(arm, position),
                lw=1.6,
                label=arm,
            )
        axes.plot([low, high], [low, high], color="black", lw=0.7, ls=":")
        ticks, labels = norm.ppf(_DET_TICKS), [f"{100 * tick:g}" for tick in _DET_TICKS]
        axes.set_xticks(ticks, labels)
        axes.set_yticks(ticks, labels)
        axes.set(xlim=(low, high), ylim=(low, high), title=title)
        axes.set(xlabel="false accepts (%)", ylabel="false rejects (%)")
        axes.legend(frameon=False)
    return figure


def learning_curve(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Plot training and validation loss by round for each federated arm."""
    with _figure((7.2, 3.6)) as (figure, axes):
        for position, (arm, history) in enumerate(histories.items()):
            rounds = [entry["round"] for entry in history]
            shade = colour(arm, position)
            for name, dashes in (("validation_loss", "-"), ("train_loss", ":")):
                pairs = [(r, e[name]) for r, e in zip(rounds, history, strict=True) if e.get(name)]
                if pairs:
                    label = f"{arm}, {name.replace('_', ' ')}"
                    axes.plot(*zip(*pairs, strict=True), color=shade, ls=dashes, label=label)
        axes.set(xlabel="round", ylabel="mean loss over devices")
        axes.legend(frameon=False)
    return figure


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    # A Figure without pyplot: no display, no global state, safe in any thread.
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots()
