"""Network sizes for new noisy classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .layout import ClassifierLayout

COARSEST = 8  # the side of the coarsest level, as in the paper


@dataclass(frozen=True)
class NetworkSize:
    """The width and depth of a network, for any image size.

    attention: the largest side with attention. mults: the width factors by number of levels, if
    they are not the default (1, 2, 3, 4).
    """

    channels: int
    res_blocks: int
    attention: int
    head_channels: int
    norm_groups: int
    mults: Mapping[int, tuple[float, ...]] = field(default_factory=dict)


WIDTHS = (1, 2, 3, 4)
NETWORK_SIZES = {
    "small": NetworkSize(32, 1, attention=8, head_channels=32, norm_groups=8),
    "medium": NetworkSize(64, 2, attention=16, head_channels=64, norm_groups=16),
    # Dhariwal & Nichol 2021, table 11: the classifiers at 64, 128 and 256
    "paper": NetworkSize(128, 2, 32, 64, 32, mults={6: (1, 1, 2, 2, 4, 4)}),
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
    return ClassifierLayout(
        model_channels=preset.channels,
        in_channels=channels,
        out_channels=classes,
        num_res_blocks=preset.res_blocks,
        channel_mult=_mult(preset, len(sides)),
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


def _mult(preset: NetworkSize, levels: int) -> tuple[float, ...]:
    if levels in preset.mults:
        return preset.mults[levels]
    finest = (1,) * (levels - len(WIDTHS))  # the finest levels of large images stay narrow
    return finest + WIDTHS[:levels]
