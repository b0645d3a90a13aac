"""Nodes that compare runs: one for each scale of a list, and all of them as one picture."""

from __future__ import annotations

import math

import numpy as np
import torch
from comfy_api.latest import io

from .schema import Schema, number

MOST_VALUES = 100


class GuidanceScales(io.ComfyNode):
    """A list of numbers: what comes after it runs once for each of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="GuidanceScales",
            search_aliases=["compare scales", "float list", "cfg list", "sweep", "xy plot"],
            inputs=[
                io.String.Input("values", default="0, 1, 2, 4, 8"),
                io.String.Input("name", default="scale"),
            ],
            outputs=[
                io.Float.Output(display_name="scales", is_output_list=True),
                io.String.Output(display_name="titles", is_output_list=True),
            ],
        )

    @classmethod
    def execute(cls, values, name) -> io.NodeOutput:
        scales = numbers(values)
        return io.NodeOutput(scales, [f"{name} {scale:g}".strip() for scale in scales])


def numbers(text: str) -> list[float]:
    """The finite numbers of a text, between commas or on lines. Raises ValueError for others."""
    words = [word.strip() for word in text.replace("\n", ",").split(",") if word.strip()]
    if not 0 < len(words) <= MOST_VALUES:
        raise ValueError(
            f"values has {len(words)} numbers; write 1 to {MOST_VALUES}, such as 0, 1, 2, 4, 8."
        )
    return [_number(word) for word in words]


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"values has {word[:40]!r}, which is no number; write numbers with commas between "
            "them, such as 0, 1, 2, 4, 8."
        )
    return value


class GuidanceComparison(io.ComfyNode):
    """The images of several runs as one picture, a column for each run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        lines = {"multiline": True, "default": "", "optional": True}
        return Schema(
            node_id="GuidanceComparison",
            search_aliases=["compare guidance", "image grid", "xy plot", "labelled grid"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images"),
                number("size", 128, 16, 2048),
                io.String.Input("titles", **lines),
                io.String.Input("rows", **lines),
            ],
            outputs=[io.Image.Output(display_name="picture")],
        )

    @classmethod
    def execute(cls, images, size, titles=(), rows=()) -> io.NodeOutput:
        from ..guidance.core.comparison import comparison  # matplotlib, on first use

        columns = [_pixels(batch) for batch in images]
        picture = comparison(columns, _lines(titles), _lines(rows), size[0])
        return io.NodeOutput(torch.from_numpy(picture).float()[None] / 255)


def _pixels(batch: torch.Tensor) -> np.ndarray:
    """Images (B, H, W, C) in 0..1 as uint8 (B, H, W, 3)."""
    batch = batch[..., :3].expand(*batch.shape[:3], 3)  # without alpha; gray in all colours
    return (batch * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _lines(texts) -> list[str]:
    """The lines of all texts of a list; a single comma-separated line would be one title."""
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]
