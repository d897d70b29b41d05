"""The figures of a generator's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fedspk.page import FIGURE_STYLE

FloatArray = npt.NDArray[np.float32]

_COLOURS = ("#2a6f97", "#8a8f98", "#d1603d")


def distance_histograms(others: Mapping[str, FloatArray], same: Mapping[str, FloatArray]) -> Figure:
    """Draw the distributions of cosine distances between speakers, and within one."""
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(8.5, 3.2), layout="constrained")
        for axes, groups, title in zip(
            figure.subplots(1, 2, sharex=True),
            (others, same),
            ("different speakers", "one speaker, two takes"),
            strict=True,
        ):
            for (name, distances), shade in zip(groups.items(), _COLOURS, strict=True):
                axes.hist(
                    distances, bins=60, density=True, histtype="step", color=shade, label=name
                )
            axes.set(title=title, xlabel="cosine distance", yticks=())
            axes.legend(frameon=False)
    return figure


def voice_map(voices: Mapping[str, FloatArray]) -> Figure:
    """Draw first takes (S, T, D) in the plane in which the first group differs most."""
    points = {name: each[:, 0] for name, each in voices.items()}
    points = {name: p / np.linalg.norm(p, axis=1, keepdims=True) for name, p in points.items()}
    first = next(iter(points.values()))
    centre = first.mean(axis=0)
    _, _, directions = np.linalg.svd(first - centre, full_matrices=False)
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.subplots()
        for (name, each), shade in zip(points.items(), _COLOURS, strict=True):
            flat = (each - centre) @ directions[:2].T
            axes.scatter(flat[:, 0], flat[:, 1], s=9, color=shade, alpha=0.7, label=name)
        axes.set(xticks=(), yticks=())
        axes.legend(frameon=False)
    return figure


def box_plots(eer: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the EERs (per cent) of the devices of each arm."""
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(max(5.2, 1.5 * len(eer)), 3.6), layout="constrained")
        axes = figure.subplots()
        axes.boxplot(
            list(eer.values()),
            tick_labels=list(eer),
            showmeans=True,
            medianprops={"color": "black"},
            meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black"},
        )
        axes.set(ylabel="EER (%)")
        axes.set_ylim(bottom=0)
    return figure
