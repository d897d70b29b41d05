"""Sample sheets: made patches beside real ones, as pictures for people to look at."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from fedspk.files import write_bytes

_STYLE: dict[Any, Any] = {"font.size": 8, "figure.dpi": 70}
_CONTRAST = 2.5  # deviations


def sample_sheet(made: Tensor, real: Tensor, title: str) -> Figure:
    """Draw invented speakers, a row each, and below them real ones.

    Args:
        made: (speakers, takes, frames, bins).
        real: (speakers, takes, frames, bins), the same number of takes.
        title: above the sheet.
    """
    rows = [("invented", i, row) for i, row in enumerate(made)]
    rows += [("real", i, row) for i, row in enumerate(real)]
    takes = made.shape[1]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.0 * takes, 1.0 * len(rows) + 0.4), layout="constrained")
        axes = np.atleast_2d(figure.subplots(len(rows), takes, sharex=True, sharey=True))
        for (kind, number, row), places in zip(rows, axes.reshape(len(rows), takes), strict=True):
            for patch, place in zip(row, places, strict=True):
                place.imshow(
                    _picture(patch),
                    origin="lower",
                    aspect="auto",
                    cmap="magma",
                    vmin=-_CONTRAST,
                    vmax=_CONTRAST,
                )
                place.set(xticks=(), yticks=())
            places[0].set_ylabel(f"{kind} {number + 1}")
        figure.suptitle(f"{title}: takes from left to right, bands from below")
    return figure


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG."""
    png = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(png, format="png")
    write_bytes(path, png.getvalue())


def _picture(patch: Tensor) -> npt.NDArray[np.float32]:
    picture: npt.NDArray[np.float32] = patch.float().cpu().numpy().T
    return picture
