"""What the pages of all experiments share: figures, in the page and beside it, and numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from fedspk.files import write_bytes
from fedspk.templates import template_environment

FIGURE_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "figure.dpi": 120,
    "svg.hashsalt": "fedspk",
}
"""Matplotlib's settings for every figure; the salt makes the same figure the same bytes."""


@dataclass(frozen=True)
class ShownFigure:
    """A figure in a page; `svg` is the element itself."""

    title: str
    caption: str
    svg: str


def show_figure(folder: Path, name: str, title: str, figure: Figure, caption: str) -> ShownFigure:
    """Return a figure for a page, saved by `save_figure`, too."""
    svg = save_figure(figure, folder, name)
    return ShownFigure(title, caption, svg[svg.index("<svg") :])


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write `name.png` and `name.svg` into `folder`; return the SVG text."""
    png, svg = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(FIGURE_STYLE):
        figure.savefig(png, format="png", bbox_inches="tight", dpi=160)
        figure.savefig(svg, format="svg", bbox_inches="tight", metadata={"Date": None})
    write_bytes(folder / f"{name}.png", png.getvalue())
    write_bytes(folder / f"{name}.svg", svg.getvalue().encode())
    return svg.getvalue()


def page_template(folder: Path, **filters: Callable[..., str]) -> jinja2.Template:
    """Return `report.html.jinja` of a folder; it knows the filter `pvalue` and those given."""
    environment = template_environment(folder)
    environment.filters |= {"pvalue": show_p_value, **filters}
    return environment.get_template("report.html.jinja")


def show_p_value(value: float | None) -> str:
    """Return a p-value as people read it; "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
