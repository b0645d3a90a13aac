"""The half-U-Net classifier on noisy inputs (Dhariwal & Nichol 2021, section 4 and appendix I)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import (
    Builder,
    activated,
    fastest_memory_format,
    join_heads,
    split_heads,
    timestep_embedding,
    tokens_of,
    zeroed,
)
from .encoder import check_halvings, encoder_stages, middle_stage, time_embedding
from .layout import ClassifierLayout


class EncoderUNet(nn.Module):
    """Class logits from x_t and t: the U-Net's encoder and middle, then a pool.

    It computes in the dtype of its input. `operations` as for the U-Net.
    """

    def __init__(
        self,
        layout: ClassifierLayout,
        operations: Any = None,
        dtype: Any = None,
        device: Any = None,
    ):
        super().__init__()
        self.layout = layout
        build = Builder(operations, dtype, device, layout.norm_groups)
        self.time_embed = time_embedding(layout, build)
        self.input_blocks, outputs = encoder_stages(layout, build)
        self.middle_block = middle_stage(layout, build, outputs[-1])
        self.out = _head(layout, build, outputs[-1], sum(outputs) + outputs[-1])

    def forward(self, x: Tensor, t: Tensor, recompute: bool = False) -> Tensor:
        """x (B, in_channels, H, W), t (B,) in 0..999 -> logits (B, classes).

        recompute: for a gradient, keep only the inputs of the stages and recompute each stage.
        Raises ValueError if the attention pool was trained at another size.
        """
        self.check_size(x.shape[-2:])
        return self.out(self.features(x, t, recompute))

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raises ValueError if the pool does not support H, W `size`."""
        layout = self.layout
        side = layout.image_size
        if layout.pool == "attention" and tuple(size) != (side, side):
            raise ValueError(
                f"This classifier's attention pool takes {side}x{side} inputs (width x height); "
                f"the image or latent is {size[1]}x{size[0]}. "
                f"Make it {side}x{side}, or use a classifier with another pool."
            )
        check_halvings(layout, size, "classifier")

    def features(self, x: Tensor, t: Tensor, recompute: bool = False) -> Tensor:
        """The pool's input: the last map (B, C, h, w), or the mean of every stage (B, sum of C)."""
        features = timestep_embedding(t, self.layout.model_channels)
        emb = activated(self.time_embed(features.to(x.dtype)))
        x = fastest_memory_format(x)
        spatial = self.layout.pool.startswith("spatial")
        means = []
        for stage in (*self.input_blocks, self.middle_block):
            x = checkpoint(stage, x, emb, use_reentrant=False) if recompute else stage(x, emb)
            if spatial:
                means.append(x.mean(dim=(2, 3)))
        return torch.cat(means, dim=1) if spatial else x


class AttentionPool(nn.Module):
    """Attention with one query, the mean token, over all positions (Radford et al. 2021, sec. 2.4).

    Only that query's output is used, so only that query is computed.
    """

    def __init__(
        self, build: Builder, tokens: int, channels: int, head_channels: int, classes: int
    ):
        super().__init__()
        self.head_channels = head_channels
        self.positional_embedding = nn.Parameter(torch.zeros(channels, tokens + 1, **build.where))
        if not self.positional_embedding.is_meta:
            nn.init.normal_(self.positional_embedding, std=channels**-0.5)
        self.qkv_proj = build.pointwise(channels, 3 * channels)
        self.c_proj = build.pointwise(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = tokens_of(x)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens).T
        q, k, v = split_heads(self.qkv_proj(tokens), self.head_channels, new_order=True)
        pooled = join_heads(F.scaled_dot_product_attention(q[:, :, :1], k, v))
        return self.c_proj(pooled).flatten(1)


def _head(layout: ClassifierLayout, build: Builder, channels: int, features: int) -> nn.Sequential:
    classes = layout.out_channels
    if layout.pool == "attention":
        assert layout.image_size is not None  # checked by the layout
        side = layout.image_size // 2 ** (len(layout.channel_mult) - 1)
        pool = AttentionPool(build, side * side, channels, layout.head_channels(channels), classes)
        return nn.Sequential(build.norm(channels), nn.SiLU(), pool)
    if layout.pool == "adaptive":
        return nn.Sequential(
            build.norm(channels),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((1, 1)),
            zeroed(build.conv(channels, classes, 1)),
            nn.Flatten(),
        )
    if layout.pool == "spatial":
        return nn.Sequential(build.linear(features, 2048), nn.ReLU(), build.linear(2048, classes))
    return nn.Sequential(
        build.linear(features, 2048), build.norm(2048), nn.SiLU(), build.linear(2048, classes)
    )
