"""Gradients with less memory: split batches, and activations computed twice instead of kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..adm import ClassifierLayout, EncoderUNet


@dataclass(frozen=True)
class GradientMemoryPlan:
    """How a classifier's gradient saves memory; the gradient is the same.

    images: number of images at once; 0 is the whole batch. recompute: keep only the input of each
    stage and recompute the stage for its gradient (Chen et al. 2016, "Training Deep Nets with
    Sublinear Memory Cost"). It takes a third more time and works with ADM classifiers. Raises
    ValueError for a negative `images`.
    """

    images: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"images is {self.images}; it must be 0 (the whole batch) or more.")

    def check(self, network: nn.Module) -> None:
        """Raises ValueError if the network has no stages to recompute."""
        if self.recompute and not isinstance(network, EncoderUNet):
            raise ValueError(
                f"recompute needs an ADM classifier; this network is a {type(network).__name__}. "
                "Set images to 1 instead, which saves memory with any network."
            )

    def parts(self, batch: int) -> Iterator[slice]:
        """The batch in parts of `images`."""
        size = self.images or max(batch, 1)
        return (slice(start, start + size) for start in range(0, max(batch, 1), size))


WHOLE = GradientMemoryPlan()


def memory_plan_within(
    free: float, layout: ClassifierLayout, shape: Sequence[int], dtype: torch.dtype
) -> GradientMemoryPlan:
    """The fastest plan for images (B, C, H, W) whose gradient needs at most `free` bytes.

    In this order: the whole batch; recomputed; recomputed in parts, at least one image at a time.
    dtype: the network's compute dtype.
    """
    batch, size = shape[0], (shape[2], shape[3])
    if batch * gradient_bytes(layout, size, dtype) <= free:
        return WHOLE
    images = int(free // gradient_bytes(layout, size, dtype, recompute=True))
    return GradientMemoryPlan(0 if images >= batch else max(images, 1), recompute=True)


def gradient_bytes(
    layout: ClassifierLayout, size: tuple[int, int], dtype: torch.dtype, recompute: bool = False
) -> int:
    """Bytes for the gradient of one image, without the weights; size is H, W.

    The activations that the blocks keep, plus SPARE times those of the largest block, for temporary
    buffers.
    """
    inputs, kept = zip(*_stages(layout, size), strict=True)
    values = sum(inputs) + max(kept) if recompute else sum(kept)
    return int((values + SPARE * max(kept)) * dtype.itemsize)


SPARE = 3


def _stages(layout: ClassifierLayout, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The number of values that each stage reads, and that it keeps for its gradient.

    The stages are those that `encoder_stages` and `middle_stage` build.
    """
    places, inputs = size[0] * size[1], layout.level_channels[0]
    for level, width in enumerate(layout.level_channels):
        attention = 5 * width * places if level in layout.attention_levels else 0
        for _ in range(layout.num_res_blocks):
            # a residual block: the inputs of two norms and of two activations
            yield inputs * places, 2 * (inputs + width) * places + attention
            inputs = width
        if level < len(layout.level_channels) - 1:
            # between its two halves, a residual block takes the mean over 2x2
            yield width * places, 2 * width * places + 2 * width * places // 4
            places //= 4
    # attention: the input of its norm, q, k, v and the output
    yield inputs * places, (4 + 5 + 4) * inputs * places
