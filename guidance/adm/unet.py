"""The ADM diffusion U-Net (Dhariwal & Nichol 2021, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import (
    AttentionBlock,
    Builder,
    ResBlock,
    Stage,
    activated,
    fastest_memory_format,
    resample,
    timestep_embedding,
    zeroed,
)
from .encoder import check_halvings, encoder_stages, middle_stage, time_embedding
from .layout import UNetLayout


class UNet(nn.Module):
    """Predicts eps from x_t and t, and the variance channels if they are learned.

    `operations` is any namespace with torch.nn's Conv1d, Conv2d, Linear, GroupNorm, Embedding.
    The network computes in the dtype of its input.
    """

    def __init__(
        self, layout: UNetLayout, operations: Any = None, dtype: Any = None, device: Any = None
    ):
        super().__init__()
        self.layout = layout
        build = Builder(operations, dtype, device, layout.norm_groups)
        self.time_embed = time_embedding(layout, build)
        if layout.num_classes is not None:
            self.label_emb = build.operations.Embedding(
                layout.num_classes, layout.embed_channels, **build.where
            )
        self.input_blocks, skips = encoder_stages(layout, build)
        self.middle_block = middle_stage(layout, build, skips[-1])
        self.output_blocks = _decoder_stages(layout, build, skips)
        self.out = nn.Sequential(
            build.norm(layout.level_channels[0]),
            nn.SiLU(),
            zeroed(build.conv(layout.level_channels[0], layout.out_channels)),
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, in_channels, H, W), t (B,) in 0..999, y (B,) class rows -> (B, out_channels, H, W).

        Raises ValueError if an unconditional model gets a class, if a conditional model gets none,
        or if the size cannot be halved often enough.
        """
        self.check_size(x.shape[-2:])
        if (y is None) != (self.layout.num_classes is None):
            wants = "needs" if y is None else "takes no"
            raise ValueError(f"This diffusion model {wants} class labels.")
        emb = self.time_embed(timestep_embedding(t, self.layout.model_channels).to(x.dtype))
        x = fastest_memory_format(x)
        if y is not None:
            emb = emb + self.label_emb(y).to(emb.dtype)
        emb = activated(emb)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raises ValueError if H, W `size` cannot be halved evenly at every level."""
        check_halvings(self.layout, size, "diffusion model")


def _decoder_stages(layout: UNetLayout, build: Builder, skips: list[int]) -> nn.ModuleList:
    channels, skips = skips[-1], list(skips)
    stages = []
    for level, width in reversed(list(enumerate(layout.level_channels))):
        for index in range(layout.num_res_blocks + 1):
            blocks: list[nn.Module] = [ResBlock(layout, build, channels + skips.pop(), width)]
            channels = width
            if level in layout.attention_levels:
                blocks.append(AttentionBlock(layout, build, channels))
            if level and index == layout.num_res_blocks:
                blocks.append(resample(layout, build, channels, up=True))
            stages.append(Stage(*blocks))
    return nn.ModuleList(stages)
