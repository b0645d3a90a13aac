"""Draw the pictures of the templates' dialog: `python scripts/template_thumbnails.py [number ...]`.

Those that run at once show what they drew; the others what comes out of them, in words and lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from comfy_server import ROOT, ComfyServer
from comfyui import find_comfyui

FOLDER = ROOT / "example_workflows"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
# pixels: the dialog shows squares of about 256, with a badge of its own at the left upper corner
SIDE, EDGE, TOP = 512, 28, 182
PAPER, PANEL, INK, DIM, ORANGE, BLUE = (
    *("#15171c", "#22252d", "#f2f2f2", "#9aa0ab"),
    *("#f0a040", "#5b9bd5"),
)
Points = Sequence[tuple[float, float]]

# Of what runs at once: a heading and a line above the picture that it drew.
RESULTS = {
    "01": ("classifier, scale 8", "the model knows no labels"),
    "04": ("CFG, scale 4", "with and without a label"),
    "05": ("CFG 2 + classifier 2", "together, each can be weaker"),
    "06": ("cfg 1 + classifier 4", "one pass of the model per step"),
    "07": ("any classifier", "it has never seen noise"),
    "08": ("DDPM of the paper", "the model's own variance"),
}
DIGITS_CURVE: Points = ((0, 4), (0.7, 4), (0.7, 1), (1, 1))


class Sheet:
    """A square picture that is drawn on."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIDE, SIDE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def words(
        self, x: float, y: float, text: str, size: int = 24, fill: str = DIM, bold: bool = False
    ) -> None:
        """Text from its left upper corner; smaller if it would be too wide."""
        name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
        font = ImageFont.truetype(str(FONTS / name), size)
        while font.getlength(text) > SIDE - x - EDGE:
            size -= 1
            font = ImageFont.truetype(str(FONTS / name), size)
        self.draw.text((x, y), text, fill=fill, font=font)

    def heading(self, first: str, second: str) -> None:
        """The two lines at the top."""
        self.words(EDGE, 72, first, 36, INK, bold=True)
        self.words(EDGE, 124, second, 25, DIM)

    def curve(self, box: Sequence[float], points: Points, most: float, fill: str = ORANGE) -> None:
        """A scale over the run, in a panel."""
        left, top, right, bottom = box
        self.draw.rounded_rectangle(box, 12, fill=PANEL)
        inner = 22

        def place(x: float, y: float) -> tuple[float, float]:
            across, up = right - left - 2 * inner, bottom - top - 2 * inner
            return left + inner + x * across, bottom - inner - y / most * up

        low = place(0, 1)[1]
        self.draw.line([(left + inner, low), (right - inner, low)], fill="#4a4f5a", width=2)
        self.draw.line([place(x, y) for x, y in points], fill=fill, width=6, joint="curve")

    def picture(self, image: Image.Image, box: Sequence[int]) -> None:
        """An image, as large as fits into the box, in its middle."""
        left, top, right, bottom = box
        share = min((right - left) / image.width, (bottom - top) / image.height)
        size = (round(image.width * share), round(image.height * share))
        corner = ((left + right - size[0]) // 2, (top + bottom - size[1]) // 2)
        self.image.paste(image.resize(size, Image.Resampling.LANCZOS), corner)

    def frame(self, box: Sequence[float], text: str, fill: str = DIM) -> None:
        """An empty picture with a size in it."""
        self.draw.rounded_rectangle(box, 10, fill=PANEL, outline=fill, width=3)
        font = ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), 24)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        self.draw.text(middle, text, fill=fill, font=font, anchor="mm")

    def arrow(self, x: float, y: float, length: float) -> None:
        """To the right."""
        self.draw.line([(x, y), (x + length - 8, y)], fill=INK, width=5)
        head = [(x + length, y), (x + length - 18, y - 12), (x + length - 18, y + 12)]
        self.draw.polygon(head, fill=INK)


def result(sheet: Sheet, heading: tuple[str, str], drawn: Image.Image) -> None:
    """Words, and what the template drew."""
    sheet.heading(*heading)
    sheet.picture(drawn, (12, TOP, SIDE - 12, SIDE - 40))


def compared(sheet: Sheet, drawn: Image.Image) -> None:
    sheet.picture(drawn, (0, 64, SIDE, SIDE))


def scheduled(sheet: Sheet, drawn: Image.Image) -> None:
    sheet.heading("CFG by a curve", "4, and exactly 1 after 0.7")
    sheet.curve((EDGE, TOP - 14, SIDE - EDGE, 292), DIGITS_CURVE, 4.6)
    sheet.picture(drawn, (12, 300, SIDE - 12, SIDE - 8))


def checkpoint(sheet: Sheet) -> None:
    points: Points = ((0, 1), (0.19, 1), (0.19, 7), (0.93, 7), (0.93, 1), (1, 1))
    sheet.heading("SDXL, SD 1.5, Flux", "cfg 7 in the middle, 1 elsewhere")
    sheet.curve((EDGE, TOP, SIDE - EDGE, 400), points, 8)
    sheet.words(EDGE, 416, "37 passes instead of 50", 32, ORANGE, bold=True)


def words(sheet: Sheet) -> None:
    sheet.heading("a photo of an animal", "the prompt; words choose which one")
    for place, animal in enumerate(("dog", "cat", "horse", "rabbit")):
        top, chosen = TOP + place * 78, place == 0
        box = (EDGE, top, SIDE - EDGE, top + 66)
        sheet.draw.rounded_rectangle(
            box, 12, fill=PANEL, outline=ORANGE if chosen else PANEL, width=4
        )
        sheet.words(EDGE + 22, top + 17, f"a photo of a {animal}", 27, INK if chosen else DIM)


def video(sheet: Sheet) -> None:
    sheet.heading("Wan 2.2, text to video", "a schedule for each model")
    half = SIDE // 2
    sheet.curve((EDGE, TOP, half - 8, 390), ((0, 4), (1, 3)), 4.6)
    sheet.curve((half + 8, TOP, SIDE - EDGE, 390), ((0, 3), (0.7, 3), (0.7, 1), (1, 1)), 4.6, BLUE)
    sheet.words(EDGE, 404, "high noise", 25, ORANGE)
    sheet.words(half + 8, 404, "low noise", 25, BLUE)
    sheet.words(EDGE, 450, "37 passes instead of 40", 28, INK, bold=True)


def worse(sheet: Sheet) -> None:
    sheet.heading("autoguidance", "away from a worse version")
    sheet.draw.rounded_rectangle((EDGE, TOP, SIDE - EDGE, 316), 12, fill=PANEL)
    sheet.words(EDGE + 22, 194, "worse", 30, BLUE, bold=True)
    sheet.words(EDGE + 22, 250, "+ 2.5 x (model - worse)", 30, ORANGE, bold=True)
    sheet.curve((EDGE, 336, SIDE - EDGE, SIDE - EDGE), ((0, 2.5), (0.7, 2.5), (0.7, 1), (1, 1)), 3)


def imagenet_64(sheet: Sheet) -> None:
    sheet.heading("golden retriever", "ImageNet, label and classifier")
    for place in range(4):
        left, top = 106 + place % 2 * 156, TOP + place // 2 * 156
        sheet.frame((left, top, left + 146, top + 146), "64 x 64")


def imagenet_256(sheet: Sheet) -> None:
    sheet.heading("golden retriever", "the model knows no classes: scale 10")
    sheet.frame((106, TOP, 408, TOP + 302), "256 x 256", ORANGE)


def enlarged(sheet: Sheet) -> None:
    sheet.heading("golden retriever", "guided small, then enlarged")
    sheet.frame((EDGE, 288, 118, 378), "64")
    sheet.arrow(130, 333, 56)
    sheet.frame((198, 190, 484, 476), "256 x 256", ORANGE)


def trained(sheet: Sheet, digits: Image.Image) -> None:
    sheet.heading("labelled pictures", "become a classifier that guides")
    sheet.draw.rounded_rectangle((EDGE, TOP, SIDE - EDGE, 368), 12, fill=PANEL)
    sheet.picture(digits, (EDGE + 14, TOP + 10, SIDE - EDGE - 14, 358))
    sheet.arrow(EDGE + 8, 430, 70)
    sheet.words(EDGE + 100, 408, "noisy classifier", 34, ORANGE, bold=True)


ALONE: dict[str, Callable[[Sheet], None]] = {
    **{"09": checkpoint, "10": words, "11": video, "12": worse},
    **{"13": imagenet_64, "14": imagenet_256, "15": enlarged},
}
DRAWN: dict[str, tuple[str, Callable[[Sheet, Image.Image], None]]] = {
    "02": ("02", compared),
    "03": ("03", scheduled),
    "16": ("04", trained),
}


def needed(numbers: Sequence[str]) -> set[str]:
    """The templates whose results are in these pictures."""
    return {DRAWN[one][0] if one in DRAWN else one for one in numbers if one not in ALONE}


def picture(number: str, results: dict[str, Image.Image]) -> Image.Image:
    """The picture of a template."""
    sheet = Sheet()
    if number in ALONE:
        ALONE[number](sheet)
    elif number in DRAWN:
        source, draw = DRAWN[number]
        draw(sheet, results[source])
    else:
        result(sheet, RESULTS[number], results[number])
    return sheet.image


def run(server: ComfyServer, path: Path) -> Image.Image:
    """The picture that a template saves, of its first seed."""
    workflow = json.loads(path.read_text("utf-8"))
    for node in workflow["nodes"]:
        values = node.get("widgets_values") or []
        node["widgets_values"] = ["fixed" if one == "randomize" else one for one in values]
    (file,) = server.run(workflow).images
    return Image.open(file).convert("RGB")


def main(numbers: list[str]) -> int:
    paths = {path.name[:2]: path for path in sorted(FOLDER.glob("*.json"))}
    numbers = numbers or list(paths)
    results: dict[str, Image.Image] = {}
    if wanted := needed(numbers):
        with ComfyServer(find_comfyui()) as server:
            results = {one: run(server, paths[one]) for one in sorted(wanted)}
    for number in numbers:
        picture(number, results).save(paths[number].with_suffix(".jpg"), quality=88)
        print(paths[number].with_suffix(".jpg").name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
