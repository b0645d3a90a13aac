"""Gradients in little memory: a batch in parts, and activations computed twice instead of kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .adm import ClassifierLayout, HalfUNet


@dataclass(frozen=True)
class Economy:
    """How a classifier's gradient saves memory; the gradient is the same.

    images: so many of the batch at once; 0 is all. recompute: keep each stage's input alone and
    compute the stage again when its gradient is due (Chen et al. 2016, "Training Deep Nets with
    Sublinear Memory Cost"): a third more time; for ADM classifiers. Raises ValueError for a
    negative `images`.
    """

    images: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"images is {self.images}; it must be 0 (the whole batch) or more.")

    def check(self, network: nn.Module) -> None:
        """Raises ValueError when the network has no stages that could be computed again."""
        if self.recompute and not isinstance(network, HalfUNet):
            raise ValueError(
                f"recompute needs an ADM classifier; this network is a {type(network).__name__}. "
                "Set images to 1 instead, which saves memory with any network."
            )

    def parts(self, batch: int) -> Iterator[slice]:
        """The batch in parts of `images`."""
        size = self.images or max(batch, 1)
        return (slice(start, start + size) for start in range(0, max(batch, 1), size))


def gradient_bytes(
    layout: ClassifierLayout, size: tuple[int, int], dtype: torch.dtype, recompute: bool = False
) -> int:
    """Memory of one image's gradient beside the weights, as measured within a fifth.

    size: H, W. Counted in maps (H, W at a level, its channels): what each block keeps for its
    gradient, and what the largest takes while it is computed.
    """
    blocks = list(_blocks(layout, size))
    kept, largest = sum(kept for kept, _ in blocks), max(kept for kept, _ in blocks)
    if recompute:
        kept = sum(output for _, output in blocks) + largest
    return int((kept + largest) * torch.empty((), dtype=dtype).element_size())


def _blocks(layout: ClassifierLayout, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """For each stage the numbers that it keeps for its gradient, and those that it puts out."""
    height, width = size
    inputs = layout.in_channels
    for level, channels in enumerate(layout.level_channels):
        places = (height >> level) * (width >> level)
        attended = level in layout.attention_levels
        for _ in range(layout.num_res_blocks):
            kept = RESIDUAL * channels + (ATTENTION * channels if attended else 0)
            yield kept * places, channels * places
            inputs = channels
        if level < len(layout.level_channels) - 1:
            yield RESIDUAL * inputs * places // 2, inputs * places // 4
    for kept in (RESIDUAL + ATTENTION, RESIDUAL):
        yield kept * channels * places, channels * places


# maps of a block's width that torch keeps for its gradient
RESIDUAL, ATTENTION = 6, 7
