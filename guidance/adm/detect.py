"""Detects the layout of an ADM network from the shapes of its tensors.

Some properties cannot be read from shapes. If the tensors are those of a released model, they come
from the table in `released.py`. Otherwise these rules apply:

- heads: 64 channels each; 4 heads in a U-Net that changes its size outside of residual blocks (as
  in improved-diffusion), and if 64 does not divide the channels (4 always does, because of the
  group norms)
- attention order: old
- image size: the first attention is at 32 pixels, at 16 in improved-diffusion's U-Nets
- noise schedule: cosine for models of 64x64 images that are not upsamplers, else linear
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .build import build_network, shapes_of
from .layout import ADMLayout, ClassifierLayout, UNetLayout
from .released import RELEASED, released_like

Shapes = Mapping[str, tuple[int, ...]]


def detect_layout(shapes: Shapes) -> ADMLayout | None:
    """The layout of a network with tensors of these `shapes`, or None if it is not ADM."""
    needed = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight")
    if any(len(shapes.get(key, ())) < 2 for key in needed):
        return None
    try:
        encoder = _encoder(shapes)
        detected = (_unet if _is_unet(shapes) else _classifier)(shapes, encoder)
        return replace(detected, **_undetected(detected))
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError):
        return None


def released_schedule(layout: ADMLayout) -> str:
    """The noise schedule, "linear" or "cosine", of a file without a description."""
    released = released_like(layout)
    if released is not None:
        return released.noise_schedule
    upsampler = isinstance(layout, UNetLayout) and layout.upsampler
    return "cosine" if layout.image_size == 64 and not upsampler else "linear"


def nearest_released(shapes: Shapes) -> tuple[str, dict[str, tuple[int, ...]]] | None:
    """(file name, its shapes) of the released model that differs in at most a tenth of its tensors.

    Used for error messages; None if there is no such model.
    """
    near = [
        (different, file, wanted)
        for file, wanted in _released_shapes()
        if (different := len(wanted.items() ^ shapes.items())) <= len(wanted) // 10
    ]
    return min(near, key=lambda one: one[0])[1:] if near else None


@functools.cache
def _released_shapes() -> tuple[tuple[str, dict[str, tuple[int, ...]]], ...]:
    """The shapes of each released file; building the networks on the meta device takes a second."""
    return tuple(
        (released.file, shapes_of(build_network(released.layout, device="meta")))
        for released in RELEASED
    )


def _undetected(layout: ADMLayout) -> dict[str, Any]:
    """Adds heads, attention order and image size to a layout that was detected from tensors."""
    released = released_like(layout)
    if released is None:
        return {"image_size": layout.image_size or _image_size(layout), **_heads(layout)}
    names = ("image_size", "num_heads", "num_head_channels", "new_attention_order")
    return {name: getattr(released.layout, name) for name in names}


def _image_size(layout: ADMLayout) -> int | None:
    first = 16 if _as_improved_diffusion(layout) else 32
    levels = layout.attention_levels
    return first * 2 ** levels[0] if levels else None


def _heads(layout: ADMLayout) -> dict[str, Any]:
    attended = {layout.level_channels[level] for level in (*layout.attention_levels, -1)}
    if _as_improved_diffusion(layout) or any(channels % 64 for channels in attended):
        return {"num_heads": 4, "num_head_channels": None}
    return {"num_heads": 1, "num_head_channels": 64}


def _as_improved_diffusion(layout: ADMLayout) -> bool:
    return isinstance(layout, UNetLayout) and not layout.resblock_updown


def _encoder(shapes: Shapes) -> dict:
    model_channels = shapes["time_embed.0.weight"][1]
    count = 1 + max(int(m[1]) for k in shapes if (m := re.match(r"input_blocks\.(\d+)\.", k)))
    if count > len(shapes):
        raise ValueError(f"input block {count - 1} cannot exist among {len(shapes)} tensors")
    levels, depth = _levels(shapes, count)
    width = [_output(shapes, index) for index in range(1, count)]
    first = [level * (depth + 1) for level in range(levels)]
    attention = [_has_attention(shapes, 1 + index) for index in first]
    attended = tuple(level for level, has in enumerate(attention) if has)
    emb = shapes["input_blocks.1.0.emb_layers.1.weight"][0]
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "model_channels": model_channels,
        "num_res_blocks": depth,
        "channel_mult": tuple(width[index] / model_channels for index in first),
        "attention_levels": attended,
        "scale_shift_norm": emb == 2 * width[0],
        "resblock_updown": not any(".op." in key for key in shapes),
        "num_head_channels": None,
    }


def _levels(shapes: Shapes, count: int) -> tuple[int, int]:
    """(resolution levels, residual blocks per level).

    levels * (blocks + 1) is the number of input blocks. Among the divisors, this is the largest
    number of levels for which every size change falls on a possible block. Such a block has the
    same width and no attention, and width and attention may only differ after it.
    """
    for depth in range(1, count):
        levels, rest = divmod(count, depth + 1)
        if rest == 0 and _fits(shapes, levels, depth):
            return levels, depth
    raise ValueError("no consistent division into levels")


def _fits(shapes: Shapes, levels: int, depth: int) -> bool:
    for level in range(levels):
        start = level * (depth + 1)
        blocks = [start + 1 + index for index in range(depth)]
        if len({(_output(shapes, b), _has_attention(shapes, b)) for b in blocks}) != 1:
            return False
        if any(_is_strided(shapes, b) for b in blocks):
            return False
        if level and not _can_halve(shapes, start):
            return False
    return _decoder_agrees(shapes, levels, depth)


def _can_halve(shapes: Shapes, block: int) -> bool:
    if _is_strided(shapes, block):
        return True
    strided = any(".op." in key for key in shapes)
    widens = f"input_blocks.{block}.0.skip_connection.weight" in shapes
    return not strided and not widens and not _has_attention(shapes, block)


def _decoder_agrees(shapes: Shapes, levels: int, depth: int) -> bool:
    """Whether a U-Net's first upsampling ends a level of `depth` + 1 output blocks.

    True for a classifier, which has no decoder, and for a single level, which has no upsampling.
    """
    ups = [
        int(m[1])
        for key in shapes
        if (m := re.match(r"output_blocks\.(\d+)\.[12]\.(in_layers\.0|conv)\.weight", key))
    ]
    return min(ups) == depth if ups else levels == 1 or not _is_unet(shapes)


def _is_unet(shapes: Shapes) -> bool:
    return any(key.startswith("output_blocks.") for key in shapes)


def _is_strided(shapes: Shapes, block: int) -> bool:
    return f"input_blocks.{block}.0.op.weight" in shapes


def _has_attention(shapes: Shapes, block: int) -> bool:
    return f"input_blocks.{block}.1.qkv.weight" in shapes


def _output(shapes: Shapes, block: int) -> int:
    prefix = f"input_blocks.{block}.0."
    for name in ("out_layers.3.weight", "op.weight"):
        if prefix + name in shapes:
            return shapes[prefix + name][0]
    raise KeyError(prefix)


def _unet(shapes: Shapes, encoder: dict) -> UNetLayout:
    inputs, outputs = encoder["in_channels"], shapes["out.2.weight"][0]
    classes = shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None
    return UNetLayout(
        **encoder,
        out_channels=outputs,
        num_classes=classes,
        image_channels=inputs // 2 if inputs == 6 else inputs,
    )


def _classifier(shapes: Shapes, encoder: dict) -> ClassifierLayout:
    if "out.2.positional_embedding" in shapes:
        pool, last = "attention", "out.2.c_proj.weight"
        tokens = shapes["out.2.positional_embedding"][1] - 1
        side = round(tokens**0.5)
        encoder["image_size"] = side * 2 ** (len(encoder["channel_mult"]) - 1)
    elif "out.3.weight" in shapes:
        last = "out.3.weight"
        pool = "adaptive" if len(shapes[last]) == 4 else "spatial_v2"
    else:
        pool, last = "spatial", "out.2.weight"
    return ClassifierLayout(**encoder, out_channels=shapes[last][0], pool=pool)
