"""Figures of matplotlib, without a display."""

from __future__ import annotations

from typing import Any

import numpy as np

DPI = 100
# for names that matplotlib's own font has no letters for
CHINESE_FONTS = (
    *("Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC"),
    *("Hiragino Sans GB", "WenQuanYi Zen Hei", "SimHei", "Arial Unicode MS"),
)


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


def fonts_for_names() -> list[str]:
    """matplotlib's own font, and for other letters those that are installed."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CHINESE_FONTS if name in installed)]


def plain(name: str, longest: int) -> str:
    """The name, shortened, without characters that matplotlib treats specially."""
    name = name if len(name) <= longest else f"{name[: longest - 3]}..."
    return f" {name}".replace("$", r"\$")
