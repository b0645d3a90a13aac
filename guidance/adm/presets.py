"""Network sizes for new noisy classifiers."""

from __future__ import annotations

from typing import NamedTuple

from .layout import ClassifierLayout

COARSEST = 8  # the side of the coarsest level, as in the paper
WIDTHS = (1, 2, 3, 4)  # the factors of the coarsest levels
PAPER_WIDTHS = (1, 1, 2, 2, 4, 4)  # with six levels


class NetworkSize(NamedTuple):
    """The width and depth for any image size; `attention` is the largest side that has it."""

    channels: int
    res_blocks: int
    attention: int
    head_channels: int
    norm_groups: int


NETWORK_SIZES = {
    "small": NetworkSize(32, 1, attention=8, head_channels=32, norm_groups=8),
    "medium": NetworkSize(64, 2, attention=16, head_channels=64, norm_groups=16),
    # Dhariwal & Nichol 2021, table 11: the classifiers at 64, 128 and 256
    "paper": NetworkSize(128, 2, attention=32, head_channels=64, norm_groups=32),
}


def classifier_layout(
    name: str, *, channels: int, size: tuple[int, int], classes: int, pool: str = "attention"
) -> ClassifierLayout:
    """The layout of this preset for images of `channels` and H, W `size`.

    Raises ValueError for another name or pool, or if the attention pool does not support the size.
    """
    if name not in NETWORK_SIZES:
        raise ValueError(f"preset is {name!r}; expected one of {', '.join(NETWORK_SIZES)}.")
    if pool == "attention" and size[0] != size[1]:
        raise ValueError(
            f"pool is attention, which takes square inputs, but these are {size[1]}x{size[0]} "
            "(width x height); choose adaptive or spatial_v2, or use square images."
        )
    preset = NETWORK_SIZES[name]
    sides = _sides(size)
    finest = (1,) * (len(sides) - len(WIDTHS))  # the finest levels of large images stay narrow
    paper = name == "paper" and len(sides) == len(PAPER_WIDTHS)
    return ClassifierLayout(
        model_channels=preset.channels,
        in_channels=channels,
        out_channels=classes,
        num_res_blocks=preset.res_blocks,
        channel_mult=PAPER_WIDTHS if paper else finest + WIDTHS[: len(sides)],
        attention_levels=tuple(n for n, side in enumerate(sides) if side <= preset.attention),
        image_size=size[0] if size[0] == size[1] else None,
        num_head_channels=preset.head_channels,
        norm_groups=preset.norm_groups,
        pool=pool,
    )


def _sides(size: tuple[int, int]) -> list[int]:
    """The shorter side at each level: halved while it is even and above COARSEST."""
    sides = [min(size)]
    factor = 2
    while sides[-1] > COARSEST and not any(length % factor for length in size):
        sides.append(sides[-1] // 2)
        factor *= 2
    return sides
