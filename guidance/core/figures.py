"""Figures of matplotlib, without a display."""

from __future__ import annotations

from typing import Any

import numpy as np

DPI = 100


def new_figure(width: float, height: float) -> Any:
    """An empty figure; width and height in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which would set a display backend globally

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_pixels(figure: Any) -> np.ndarray:
    """The figure as uint8 (H, W, 3)."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def plain(name: str, longest: int) -> str:
    """The name, shortened, without characters that matplotlib treats specially."""
    name = name if len(name) <= longest else f"{name[: longest - 3]}..."
    return f" {name}".replace("$", r"\$")
