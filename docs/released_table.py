"""The table of docs/released_models.md: `python docs/released_table.py` prints it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from guidance.adm.released import RELEASED, Released  # noqa: E402


def markdown_table() -> str:
    """A row for each released file."""
    lines = [
        "| file | images | size | flags of its own | the tensors tell | the table adds "
        "| classifier scale |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_row(one) for one in RELEASED])


def _row(one: Released) -> str:
    scale = "" if one.classifier_scale is None else f"{one.classifier_scale:g}"
    cells = (f"`{one.file}`", one.images, f"{one.megabytes} MB", f"`{one.flags}`")
    return f"| {' | '.join((*cells, _told(one), _untold(one), scale))} |"


def _told(one: Released) -> str:
    layout = one.layout
    size = f" of {one.image_size}x{one.image_size}" if one.kind == "classifier" else ""
    return (
        f"{one.kind}{size}, {layout.model_channels} channels, "
        f"{layout.num_res_blocks} blocks per level, "
        f"multipliers {', '.join(f'{mult:g}' for mult in layout.channel_mult)}, "
        f"attention after {', '.join(map(str, layout.attention_levels))} halvings, "
        f"{layout.class_count or 'no'} classes"
    )


def _untold(one: Released) -> str:
    layout = one.layout
    heads = f"{layout.num_heads} heads"
    if layout.num_head_channels is not None:
        heads = f"{layout.num_head_channels} channels per head"
    order = "new" if layout.new_attention_order else "old"
    size = "" if one.kind == "classifier" else f"{one.image_size}x{one.image_size}, "
    return f"{size}{heads}, {order} attention order, {one.noise_schedule} schedule"


if __name__ == "__main__":
    print(markdown_table())
