"""A plot of an evaluation, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from ..core.figures import new_figure, plain, to_pixels
from .report import Row

COLOURS = {"none": "black", "classifier": "tab:orange", "CFG": "tab:blue"}
OTHERS = ("gray", "green", "red", "purple", "brown", "olive", "cyan")  # for files, in turn
MARKERS = "sP*X^vD<>dph"  # for schedules and files, in turn
LONGEST = 70  # characters of a name in the legend
# position of the scale's text next to its point, so that two kinds do not overlap
BESIDE = {"none": (-11, 5), "classifier": (5, -12), "CFG": (5, 5)}
WORDS = {"accuracy": "judge accuracy", "frechet": "Frechet distance to the real images"}


def plot_rows(rows: Sequence[Row]) -> np.ndarray:
    """(H, W, 3) uint8: accuracy against Frechet distance, and precision against recall.

    Each kind of guidance has a line that starts at the unguided point, with points labelled by
    scale. Schedules and files are single points. Without real images, there is only one part:
    accuracy against diversity.
    """
    compared = all(row.score.frechet is not None for row in rows)
    parts = [("frechet", "accuracy"), ("recall", "precision")]
    parts = parts if compared else [("diversity", "accuracy")]
    names = list(dict.fromkeys(row.guidance for row in rows))
    figure = new_figure(6.0 * len(parts) + (0 if compared else 1.5), 5.5 + 0.12 * len(names))
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for ax, (across, up) in zip(axes, parts, strict=True):
        _draw(ax, rows, across, up)
        ax.set(xlabel=WORDS.get(across, across), ylabel=WORDS.get(up, up))
        ax.grid(alpha=0.3)
        ax.margins(0.08)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(parts), fontsize=9)
    return to_pixels(figure)


def _draw(ax: Any, rows: Sequence[Row], across: str, up: str) -> None:
    def place(row: Row) -> tuple[float, float]:
        return getattr(row.score, across), getattr(row.score, up)

    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.kind, row.guidance), []).append(row)
    start = [place(row) for row in rows if row.kind == "none"]
    markers, others = cycle(MARKERS), cycle(OTHERS)
    for (kind, name), along in lines.items():
        look: dict[str, Any] = {"label": plain(name, LONGEST)}
        look["color"] = COLOURS.get(kind) or f"tab:{next(others)}"
        places = [place(row) for row in along]
        if along[0].scale is None:
            look |= {"marker": next(markers), "ms": 9, "ls": "", "alpha": 0.8}
        elif kind == "none":
            look |= {"marker": "o", "ls": "", "zorder": 3}
        else:
            places = [*start, *places]
            look |= {"marker": "o", "ls": "-", "lw": 1.2}
        ax.plot(*zip(*places, strict=True), **look)
        for row in along:
            _number(ax, row, place(row))


def _number(ax: Any, row: Row, place: tuple[float, float]) -> None:
    """Writes the scale next to its point."""
    if row.scale is None:
        return
    from matplotlib.patheffects import withStroke

    ax.annotate(
        f"{row.scale:g}",
        place,
        xytext=BESIDE[row.kind],
        textcoords="offset points",
        fontsize=9,
        color=COLOURS[row.kind],
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=4,
    )
