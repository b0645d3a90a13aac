"""Figures of matplotlib, without a display."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))
