"""What a classifier saw: predicted images from a few points of a run, with their best classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.figures import fonts_for_names, plain
from .classifier_record import MOST_IMAGES, ClassifierRecord
from .trace import Trace

POINTS = 5
LONGEST = 18  # characters of a class name below a picture
# inches: the most of a picture, a line of text, the space between rows, the titles
WIDEST, TALLEST, LINE, GAP, HEADER = 1.6, 1.3, 0.15, 0.1, 0.65
LEFT = 0.35  # inches, for the names of the rows


@dataclass(frozen=True)
class Strip:
    """The pictures of one classifier; columns: the evaluation, its sigma and its record."""

    columns: list[tuple[int, float, ClassifierRecord]]
    rows: int
    batch: int

    @property
    def picture_size(self) -> tuple[float, float]:
        """Width and height in inches."""
        pictures = self.columns[0][2].pictures
        assert pictures is not None
        height, width = pictures.wait().shape[1:3]
        inches = min(WIDEST / width, TALLEST / height)
        return width * inches, height * inches

    @property
    def row_height(self) -> float:
        """Inches: a picture, and a line for each of the best classes."""
        return self.picture_size[1] + self.columns[0][2].best.wait().shape[1] * LINE + GAP


def strips_of(trace: Trace) -> dict[int, Strip]:
    """By its number, the strip of each classifier that left pictures; at most four of them.

    They share MOST_IMAGES rows, and each has one at least.
    """
    found: dict[int, list[tuple[int, float, ClassifierRecord]]] = {}
    for index, evaluation in enumerate(trace.evaluations):
        for record in evaluation.classifiers:
            if record.pictures is not None:
                column = (index, evaluation.position.sigma, record)
                found.setdefault(record.number, []).append(column)
    shown = sorted(found)[:MOST_IMAGES]
    return {number: _strip(found[number], MOST_IMAGES // len(shown)) for number in shown}


def _strip(columns: list[tuple[int, float, ClassifierRecord]], most_rows: int) -> Strip:
    """POINTS of the columns, evenly spread over their evaluations."""
    wanted = np.linspace(columns[0][0], columns[-1][0], POINTS)
    nearest = {min(columns, key=lambda one: abs(one[0] - at))[0] for at in wanted}
    chosen = [one for one in columns if one[0] in nearest]
    batch = len(chosen[0][2].values.wait())
    return Strip(chosen, min(most_rows, batch), batch)


def strip_height(strip: Strip) -> float:
    """Inches."""
    return HEADER + strip.rows * strip.row_height


def draw_strip(figure: Any, width: float, strip: Strip, name: str, colour: str) -> None:
    """A row for each image and a column for each point of the run; width in inches."""
    height, (wide, tall) = strip_height(strip), strip.picture_size
    some = f" ({strip.rows} of {strip.batch} images)" if strip.rows < strip.batch else ""
    at = {"x": LEFT / width, "y": 1 - 0.15 / height}
    title = f"Predicted images as seen by{name}{some}"
    figure.text(**at, s=title, fontsize=10, fontfamily=fonts_for_names(), va="top")
    column_width = (width - LEFT) / POINTS
    for column, (index, sigma, record) in enumerate(strip.columns):
        assert record.pictures is not None
        best = record.best_of_each()
        for row, picture in enumerate(record.pictures.wait().numpy()[: strip.rows]):
            left, top = LEFT + column * column_width, HEADER + row * strip.row_height
            place = (left, height - top - tall, wide, tall)
            sizes = (width, height, width, height)
            ax = figure.add_axes([one / size for one, size in zip(place, sizes, strict=True)])
            _draw_picture(ax, picture)
            _draw_best(ax, best[row], record, row, colour)
            if row == 0:
                ax.set_title(f"evaluation {index}, sigma {sigma:.3g}", fontsize=8, loc="left")
            if column == 0 and strip.batch > 1:
                ax.set_ylabel(f"image {row + 1}", fontsize=8)


def _draw_picture(ax: Any, picture: np.ndarray) -> None:
    height, width, channels = picture.shape
    ax.set(xticks=[], yticks=[])
    gray = {"cmap": "gray", "vmin": 0, "vmax": 255} if channels == 1 else {}
    smooth = "nearest" if max(height, width) <= 64 else "antialiased"
    ax.imshow(picture[..., 0] if gray else picture, interpolation=smooth, **gray)


def _draw_best(
    ax: Any, best: list[tuple[int, float]], record: ClassifierRecord, image: int, colour: str
) -> None:
    """The best classes below the picture; that of the label in the classifier's colour."""
    which = record.classifier
    label = which.labels[image % len(which.labels)] if which.labels else None
    for line, (index, value) in enumerate(best):
        name = plain(_shortened(which.class_name(index)), LONGEST)
        wanted = index == label and not which.is_score
        ax.annotate(
            f"score {value:.3g}" if which.is_score else f"{name}  {percent(value)}".lstrip(),
            (0, 0),
            xycoords="axes fraction",
            xytext=(0, -3 - 72 * LINE * line),
            textcoords="offset points",
            va="top",
            fontsize=8,
            fontfamily=fonts_for_names(),
            **({"color": colour, "fontweight": "bold"} if wanted else {"color": "0.3"}),
        )


def _shortened(name: str) -> str:
    """The beginning and the end: lines of words often begin with the same words."""
    half = (LONGEST - 3) // 2
    return name if len(name) <= LONGEST else f"{name[: half + 1]}...{name[-half:]}"


def percent(probability: float) -> str:
    """A probability for people: "93 %", "<1 %"."""
    share = 100 * probability
    return "<1 %" if 0 < share < 0.5 else f"{share:.0f} %"
