"""The pictures of docs/which_guidance.md and README.md: python docs/which_guidance/draw.py [NAME]

Grids of digits drawn by the shipped models, a row for each way of guiding, and a plot of the table
in docs/evaluation.md. Every row begins with the same noise, so that what differs is the guidance.
NAME is a picture's name without .png; without any, all are drawn, which takes some minutes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "which_guidance"
MODEL = ROOT / "models" / "diffusion_models" / "digits_adm.safetensors"
CLASSIFIER = ROOT / "models" / "classifiers" / "digits_classifier.safetensors"
EVALUATION = ROOT / "docs" / "evaluation.md"

# Every digit once, and one of them often: whether it is followed, and how much variety is left.
OFTEN = 2
LABELS = (*range(10), *[OFTEN] * 6)
STEPS = "ddim50"
SEED = 2

NOTHING: dict[str, Any] = {"scale": 0.0, "cfg": 0.0}


@dataclass(frozen=True)
class Guided:
    """A row of a picture: what it is called, and which options of a Job make it."""

    words: str
    options: dict[str, Any] = field(default_factory=dict)
    cfg_schedule: str | None = None
    schedule: str | None = None


NONE = Guided("no guidance", NOTHING)


def classifier(scale: float, words: str = "", **options: Any) -> Guided:
    """A row of classifier guidance; the diffusion model does not know the class."""
    return Guided(f"classifier {scale:g}{words}", NOTHING | {"scale": scale} | options)


def cfg(scale: float, **options: Any) -> Guided:
    """A row of classifier-free guidance."""
    return Guided(f"CFG {scale:g}", NOTHING | {"cfg": scale} | options)


def between(start: float, end: float, scale: float, outside: float) -> str:
    """A schedule's JSON: that scale in a part of the run."""
    points = f"[[{start}, {scale}], [{end}, {scale}]]"
    return f'{{"points": {points}, "interpolation": "hold", "outside": {outside}}}'


MIDDLE = (0.3, 0.8)
EARLY = (0.0, 0.7)

PICTURES: dict[str, tuple[Guided, ...]] = {
    "front": (NONE, classifier(1), classifier(4), cfg(4)),
    "classifier": (NONE, *map(classifier, (1, 2, 4, 8))),
    "cfg": (NONE, *map(cfg, (1, 2, 4, 8))),
    "both": (
        cfg(1),
        Guided("CFG 1, classifier 2", {"cfg": 1.0, "scale": 2.0}),
        cfg(2),
        Guided("CFG 2, classifier 2", {"cfg": 2.0, "scale": 2.0}),
    ),
    "strength": (
        classifier(2),
        classifier(2, ", entropy 10", entropy_limit=10.0),
        classifier(8),
        classifier(8, ", cap 0.5", cap=0.5),
        classifier(8, ", smooth 0.1", label_smoothing=0.1),
    ),
    "schedule": (
        cfg(4),
        Guided("CFG 4 from 0.3 to 0.8", NOTHING, cfg_schedule=between(*MIDDLE, 4, 1)),
        Guided("CFG 4 until 0.7", NOTHING, cfg_schedule=between(*EARLY, 4, 1)),
        classifier(4),
        Guided("classifier 4, 0.3 to 0.8", NOTHING, schedule=between(*MIDDLE, 4, 0)),
        Guided("classifier 4 until 0.7", NOTHING, schedule=between(*EARLY, 4, 0)),
    ),
}


@dataclass(frozen=True)
class Drawn:
    """The images of a row, uint8 (N, H, W, C), and what one of them cost."""

    images: np.ndarray
    passes: float
    gradients: float

    @property
    def cost(self) -> str:
        """In words."""
        gradients = f", {self.gradients:g} gradients" if self.gradients else ""
        return f"{self.passes:g} passes{gradients}"


def drawer(steps: str = STEPS, labels: Sequence[int] = LABELS) -> Callable[[Guided], Drawn]:
    """A function that draws a row, and remembers the rows that it has drawn."""
    import guidance
    from guidance.evaluation.compute_cost import count_compute
    from guidance.sampling.generate import SamplingConfig, generate

    model, steering = guidance.load_adm(MODEL), guidance.load_classifier(CLASSIFIER)
    known: dict[str, Drawn] = {}

    def draw(row: Guided) -> Drawn:
        if row.words in known:
            return known[row.words]
        read = guidance.GuidanceSchedule.from_json
        job = SamplingConfig(
            num_samples=len(labels),
            batch_size=len(labels),
            label=labels,
            respacing=steps,
            seed=SEED,
            schedule=read(row.schedule) if row.schedule else None,
            cfg_schedule=read(row.cfg_schedule) if row.cfg_schedule else None,
            **row.options,
        )
        with count_compute(model, steering) as work:
            images, _ = generate(model, steering, job, title=row.words)
        each = work.per_image(len(images))
        known[row.words] = Drawn(images, each.passes, each.gradients)
        return known[row.words]

    return draw


MARGIN, HEAD, GAP, APART, TILE = 212, 30, 2, 16, 64  # pixels
INK, PALE, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)


def grid(rows: Sequence[tuple[str, Drawn]], labels: Sequence[int] = LABELS) -> Image.Image:
    """The rows below each other, each with its name and cost; the digits asked for at the top."""
    width = _left(len(labels), labels)
    sheet = Image.new("RGB", (width, HEAD + len(rows) * (TILE + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    pen.text((4, 6), "asked for", PALE, small)
    for column, label in enumerate(labels):
        pen.text((_left(column, labels) + TILE // 2 - 5, 4), str(label), INK, large)
    for index, (words, drawn) in enumerate(rows):
        top = HEAD + index * (TILE + GAP)
        pen.text((4, top + 10), words, INK, large)
        pen.text((4, top + 36), drawn.cost, PALE, small)
        for column, image in enumerate(drawn.images):
            tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (_left(column, labels), top))
    return sheet


def _left(column: int, labels: Sequence[int]) -> int:
    """Where a column begins: the digit that is drawn often stands apart."""
    apart = APART if column > len(set(labels)) - 1 and len(set(labels)) < len(labels) else 0
    return MARGIN + column * (TILE + GAP) + apart


@dataclass(frozen=True)
class Result:
    """A row of the table of results in docs/evaluation.md."""

    guidance: str
    scale: float
    accuracy: float
    diversity: float


RESULT = re.compile(r"^\| ([^|]+) \| ([0-9.]+) \| ([0-9.]+) \| ([0-9.]+) \|$")


def results(text: str) -> list[Result]:
    """The rows of results in the text of a document."""
    found = filter(None, map(RESULT.match, text.splitlines()))
    return [Result(m[1], *map(float, m.groups()[1:])) for m in found]


# how each guidance is drawn: colour, marker, where its scales are written
LOOKS = {
    "classifier": ("tab:orange", "o", (-2, -16)),
    "CFG": ("tab:blue", "o", (4, 6)),
    "classifier, entropy limit 10": ("tab:green", "s", (8, -6)),
    "classifier, cap 0.5": ("tab:red", "v", (6, 4)),
    "classifier, cap 1": ("tab:red", "^", (-14, -12)),
    "classifier, label smoothing 0.01": ("tab:purple", "D", (8, -14)),
    "classifier, label smoothing 0.1": ("tab:purple", "P", (6, -12)),
}
LINES = ("classifier", "CFG")
CLOSE = {"xlim": (3.2, 5.7), "ylim": (0.86, 1.005)}  # where the options differ


def tradeoff(rows: Sequence[Result]) -> Image.Image:
    """Accuracy against diversity: the two kinds of guidance, and the options from near."""
    from guidance.core.figures import new_figure, to_pixels

    figure = new_figure(11.0, 4.8)
    whole, near = figure.subplots(1, 2)
    start = next(row for row in rows if row.guidance == "none")
    whole.plot(start.diversity, start.accuracy, "ko", label="no guidance")
    for name in LINES:
        _line(whole, [row for row in rows if row.guidance == name], start)
    for name in LOOKS:
        _line(near, [row for row in rows if row.guidance == name], start)
    near.set(**CLOSE)
    for axes in (whole, near):
        axes.set(xlabel="diversity", ylabel="judge accuracy")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", fontsize=9)
    return Image.fromarray(to_pixels(figure))


def _line(axes: Any, along: Sequence[Result], start: Result) -> None:
    """The scales of one guidance, joined with no guidance where there are several of them."""
    name = along[0].guidance
    colour, marker, beside = LOOKS[name]
    joined = [start, *along] if name in LINES else along
    places = [(row.diversity, row.accuracy) for row in joined]
    axes.plot(*zip(*places, strict=True), color=colour, lw=1.2, zorder=1)
    points = [(row.diversity, row.accuracy) for row in along]
    axes.plot(*zip(*points, strict=True), marker, color=colour, ls="", label=name)
    for row, place in zip(along, points, strict=True):
        across = -10 if row is along[-1] and name in LINES else beside[0]
        axes.annotate(
            f"{row.scale:g}",
            place,
            xytext=(across, beside[1]),
            textcoords="offset points",
            color=colour,
            annotation_clip=True,
        )


def main(names: Sequence[str]) -> int:
    """Draw the pictures that are named, or all."""
    sys.path.append(str(ROOT))  # for `guidance`; last, because nodes/ is a common name
    choices = [*PICTURES, "tradeoff"]
    unknown = [name for name in names if name not in choices]
    if unknown:
        print(f"{unknown[0]} is no picture; expected some of {', '.join(choices)}.")
        return 2
    FOLDER.mkdir(exist_ok=True)
    draw = drawer() if set(names or choices) & set(PICTURES) else None
    for name in names or choices:
        if draw is not None and name in PICTURES:
            picture = grid([(row.words, draw(row)) for row in PICTURES[name]])
            picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
        else:
            picture = tradeoff(results(EVALUATION.read_text("utf-8")))
        file = FOLDER / f"{name}.png"
        picture.save(file, optimize=True)
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
