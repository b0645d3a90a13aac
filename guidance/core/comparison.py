"""Images of several runs side by side, with a title for each run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .figures import DPI, fonts_for_names, new_figure, plain, to_pixels
from .images import MOST_PIXELS

GAP, EDGE = 6, 12  # pixels: between the images, and around them
LONGEST = 40  # characters of a title
PAPER, INK = "#1b1c1f", "#e6e6e6"


def comparison(
    columns: Sequence[np.ndarray], titles: Sequence[str], rows: Sequence[str], size: int
) -> np.ndarray:
    """One picture uint8 (H, W, 3): a column for each run, a row for each image of its batch.

    columns: uint8 (B, h, w, 3) of each run. titles, rows: at the top and at the left, or none.
    size: the longer side of an image, in pixels. Raises ValueError if counts do not fit, or for a
    picture that is too large.
    """
    count = max(map(len, columns))
    _check("titles", titles, len(columns), "runs")
    _check("rows", rows, count, "images in the largest batch")
    images = {
        (row, column): _resized(image, size)
        for column, batch in enumerate(columns)
        for row, image in enumerate(batch)
    }
    height, width = (max(image.shape[side] for image in images.values()) for side in (0, 1))
    text = max(10, min(width // 5, 22))  # pixels: the height of the letters
    letters = max((len(plain(row, LONGEST)) for row in rows), default=0)
    left, top = EDGE + int(letters * text * 0.7), EDGE + (2 * text if titles else 0)
    wide = left + len(columns) * (width + GAP) - GAP + EDGE
    high = top + count * (height + GAP) - GAP + EDGE
    if wide * high > MOST_PIXELS:
        raise ValueError(
            f"size is {size}, which makes a picture of {wide} x {high} pixels; use a smaller size, "
            "or compare fewer images."
        )
    sheet = _titled(
        (high, wide),
        [(left + (width + GAP) * k + width / 2, top - text, name) for k, name in enumerate(titles)],
        [(left - EDGE, top + (height + GAP) * k + height / 2, name) for k, name in enumerate(rows)],
        text,
    )
    for (row, column), image in images.items():
        y, x = top + row * (height + GAP), left + column * (width + GAP)
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def _check(name: str, words: Sequence[str], count: int, what: str) -> None:
    if words and len(words) != count:
        raise ValueError(
            f"{name} has {len(words)} lines for {count} {what}; write one line for each, or none."
        )


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """The image with its longer side of this size."""
    share = size / max(image.shape[:2])
    height, width = (max(1, round(side * share)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _titled(
    shape: tuple[int, int],
    above: list[tuple[float, float, str]],
    beside: list[tuple[float, float, str]],
    text: int,
) -> np.ndarray:
    """A dark sheet (H, W, 3) with words at (x, y) in pixels: centered, or to the left of it."""
    height, width = shape
    figure = new_figure(width / DPI, height / DPI)
    figure.set_facecolor(PAPER)
    font = {"color": INK, "family": fonts_for_names(), "size": text * 72 / DPI, "va": "center"}
    for words, side in ((above, "center"), (beside, "right")):
        for x, y, name in words:
            figure.text(x / width, 1 - y / height, plain(name, LONGEST).strip(), ha=side, **font)
    return to_pixels(figure)[:height, :width].copy()
