"""The downsampling half and the middle, shared by the U-Net and the classifier."""

from __future__ import annotations

from torch import nn

from .blocks import AttentionBlock, Builder, ResBlock, Stage, resample
from .layout import ADMLayout


def time_embedding(layout: ADMLayout, build: Builder) -> nn.Sequential:
    """Two linear layers on the sinusoidal features of t."""
    return nn.Sequential(
        build.linear(layout.model_channels, layout.embed_channels),
        nn.SiLU(),
        build.linear(layout.embed_channels, layout.embed_channels),
    )


def encoder_stages(layout: ADMLayout, build: Builder) -> tuple[nn.ModuleList, list[int]]:
    """The input blocks and the output channels of each of them."""
    channels = layout.level_channels[0]
    stages = [Stage(build.conv(layout.in_channels, channels))]
    outputs = [channels]
    last = len(layout.level_channels) - 1
    for level, width in enumerate(layout.level_channels):
        for _ in range(layout.num_res_blocks):
            blocks: list[nn.Module] = [ResBlock(layout, build, channels, width)]
            channels = width
            if level in layout.attention_levels:
                blocks.append(AttentionBlock(layout, build, channels))
            stages.append(Stage(*blocks))
            outputs.append(channels)
        if level != last:
            stages.append(Stage(resample(layout, build, channels, up=False)))
            outputs.append(channels)
    return nn.ModuleList(stages), outputs


def middle_stage(layout: ADMLayout, build: Builder, channels: int) -> Stage:
    """Residual, attention, residual at the coarsest resolution."""
    return Stage(
        ResBlock(layout, build, channels, channels),
        AttentionBlock(layout, build, channels),
        ResBlock(layout, build, channels, channels),
    )


def check_halvings(layout: ADMLayout, size: tuple[int, ...], name: str) -> None:
    """Raises ValueError if H, W `size` cannot be halved evenly; `name` is used in the message."""
    halvings = len(layout.channel_mult) - 1
    if any(length % 2**halvings for length in size):
        raise ValueError(
            f"This {name} halves its input {halvings} times, so width and height must be "
            f"multiples of {2**halvings}; they are {size[1]}x{size[0]}."
        )
