"""The layout of an ADM network from the shapes of its tensors.

What shapes cannot tell has a rule. Heads: 64 channels each, but 4 heads in the models whose
original flags said so (128x128, and the 64 -> 256 upsampler). Attention order: the old one, but
the new one in the 64x64 diffusion model. Image size: the first attention level is 32 pixels wide.
Schedule: cosine for 64x64 models, else linear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .layout import ADMLayout, ClassifierLayout, UNetLayout

Shapes = Mapping[str, tuple[int, ...]]
FIRST_ATTENTION_SIZE = 32


def detect_layout(shapes: Shapes) -> ADMLayout | None:
    """The layout whose network has tensors of these `shapes`, or None if it is not an ADM one."""
    needed = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight")
    if any(len(shapes.get(key, ())) < 2 for key in needed):
        return None
    try:
        encoder = _encoder(shapes)
        is_unet = any(key.startswith("output_blocks.") for key in shapes)
        return _unet(shapes, encoder) if is_unet else _classifier(shapes, encoder)
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError):
        return None


def released_schedule(layout: ADMLayout) -> str:
    """The noise schedule of the released models: cosine at 64x64, linear elsewhere."""
    upsampler = isinstance(layout, UNetLayout) and layout.upsampler
    return "cosine" if layout.image_size == 64 and not upsampler else "linear"


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
        "image_size": FIRST_ATTENTION_SIZE * 2 ** attended[0] if attended else None,
        "scale_shift_norm": emb == 2 * width[0],
        "resblock_updown": not any(".op." in key for key in shapes),
    }


def _levels(shapes: Shapes, count: int) -> tuple[int, int]:
    """(resolution levels, residual blocks per level).

    levels * (blocks + 1) is the number of input blocks. Of the divisors, the one with most levels
    whose size changes fall on blocks that can be size changes: same width, no attention, and the
    only places after which width and attention may differ.
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
    """Whether a U-Net's first doubling closes a level of `depth` + 1 output blocks.

    A classifier has no decoder to tell, and a single level no doubling.
    """
    ups = [
        int(m[1])
        for key in shapes
        if (m := re.match(r"output_blocks\.(\d+)\.[12]\.(in_layers\.0|conv)\.weight", key))
    ]
    is_unet = any(key.startswith("output_blocks.") for key in shapes)
    return min(ups) == depth if ups else levels == 1 or not is_unet


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
    signature = (encoder["model_channels"], encoder["channel_mult"])
    classes = shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None
    four_heads = signature in ((256, (1, 1, 2, 3, 4)), (192, (1, 1, 2, 2, 4, 4))) and (
        len(encoder["attention_levels"]) == 3
    )
    return UNetLayout(
        **encoder,
        out_channels=outputs,
        num_classes=classes,
        image_channels=inputs // 2 if inputs == 6 else inputs,
        num_heads=4 if four_heads else 1,
        num_head_channels=None if four_heads else 64,
        new_attention_order=signature == (192, (1, 2, 3, 4)),
    )


def _classifier(shapes: Shapes, encoder: dict) -> ClassifierLayout:
    if "out.2.positional_embedding" in shapes:
        pool, classes = "attention", shapes["out.2.c_proj.weight"][0]
        tokens = shapes["out.2.positional_embedding"][1] - 1
        side = round(tokens**0.5)
        encoder["image_size"] = side * 2 ** (len(encoder["channel_mult"]) - 1)
    elif len(shapes.get("out.3.weight", ())) == 4:
        pool, classes = "adaptive", shapes["out.3.weight"][0]
    elif len(shapes.get("out.3.weight", ())) == 2:
        pool, classes = "spatial_v2", shapes["out.3.weight"][0]
    else:
        pool, classes = "spatial", shapes["out.2.weight"][0]
    return ClassifierLayout(**encoder, out_channels=classes, pool=pool)
