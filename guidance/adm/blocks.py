"""Building blocks of the ADM networks, with the parameter names of OpenAI's checkpoints.

Source: Dhariwal & Nichol 2021, section 3; residual blocks with adaptive group normalisation,
eq. AdaGN(h, y) = y_s GroupNorm(h) + y_b.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import layers
from .layout import ADMLayout


def fastest_memory_format(x: Tensor) -> Tensor:
    """The maps (B, C, H, W) in the memory format of the device's fastest convolutions.

    Channels-last on a CPU, because oneDNN uses it directly. On CUDA, group norm would undo it.
    """
    if x.device.type != "cpu":
        return x
    return x.contiguous(memory_format=torch.channels_last)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of the timesteps `t` (B,), fractional values allowed: (B, dim) fp32.

    Cosines first, then sines, frequencies from 1 down to 1 / max_period (Vaswani et al. 2017,
    section 3.5, in the order the ADM checkpoints were trained with).
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponent)[None]
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(features, (0, dim % 2))


class Builder:
    """Creates layers from a given namespace (`layers`, or ComfyUI's castable ops)."""

    def __init__(
        self, operations: Any = None, dtype: Any = None, device: Any = None, norm_groups: int = 32
    ):
        self.operations = operations or layers
        self.where = {"dtype": dtype, "device": device}
        self.norm_groups = norm_groups

    def norm(self, channels: int) -> nn.Module:
        return self.operations.GroupNorm(self.norm_groups, channels, **self.where)

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        return self.operations.Linear(inputs, outputs, **self.where)

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
        return self.operations.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, **self.where
        )

    def pointwise(self, inputs: int, outputs: int) -> nn.Module:
        return pointwise_layer(self.operations)(inputs, outputs, 1, **self.where)


@functools.lru_cache(maxsize=16)
def pointwise_layer(operations: Any) -> Any:
    """The namespace's Conv1d of size 1, applied to tokens (B, L, C).

    The checkpoints store it as a Conv1d over flattened positions. It is a linear layer: a GPU
    computes it in one kernel, where a convolution also changes the order of the values.
    """

    class Pointwise(operations.Conv1d):  # type: ignore[name-defined]
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.linear(x, weight[..., 0], bias)

    return Pointwise


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with zero parameters, so that its residual block starts as the identity."""
    for parameter in layer.parameters():
        if not parameter.is_meta:
            nn.init.zeros_(parameter)
    return layer


def upsample(x: Tensor) -> Tensor:
    """Doubles the size, nearest neighbour."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Halves the size, 2x2 mean."""
    return layers.mean_2x2(x)


def activated(emb: Tensor) -> Tensor:
    """The embedding as the blocks read it."""
    return F.silu(emb)


class ResBlock(nn.Module):
    """Residual block conditioned on the embedding; `resample` changes the size of both paths.

    The activation of the embedding, the same in every block, is computed once (`activated`).
    """

    def __init__(
        self, layout: ADMLayout, build: Builder, inputs: int, outputs: int, resample: Any = None
    ):
        super().__init__()
        self.scale_shift_norm = layout.scale_shift_norm
        self.resample = resample
        modulation = 2 * outputs if layout.scale_shift_norm else outputs
        self.in_layers = nn.Sequential(build.norm(inputs), nn.SiLU(), build.conv(inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), build.linear(layout.embed_channels, modulation))
        self.out_layers = nn.Sequential(
            build.norm(outputs),
            nn.SiLU(),
            nn.Dropout(layout.dropout),
            zeroed(build.conv(outputs, outputs)),
        )
        self.skip_connection = (
            nn.Identity() if inputs == outputs else build.conv(inputs, outputs, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self._modulate(conv(h), self.emb_layers[1](emb)[:, :, None, None])
        return h.add_(self.skip_connection(x))

    def _modulate(self, h: Tensor, emb: Tensor) -> Tensor:
        if not self.scale_shift_norm:
            return self.out_layers(h + emb)
        norm, act, dropout, conv = self.out_layers
        scale, shift = emb.chunk(2, dim=1)
        return conv(dropout(act(torch.addcmul(shift, norm(h), 1 + scale))))


class Resample(nn.Module):
    """Size change outside a residual block: strided convolution, or nearest then convolution."""

    def __init__(self, build: Builder, channels: int, up: bool):
        super().__init__()
        self.up = up
        if up:
            self.conv = build.conv(channels, channels)
        else:
            self.op = build.conv(channels, channels, stride=2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(upsample(x)) if self.up else self.op(x)


def resample(layout: ADMLayout, build: Builder, channels: int, up: bool) -> nn.Module:
    """The block that doubles (`up`) or halves the size between two levels."""
    if layout.resblock_updown:
        return ResBlock(layout, build, channels, channels, upsample if up else downsample)
    return Resample(build, channels, up)


def tokens_of(x: Tensor) -> Tensor:
    """(B, L, C), L = H W, from maps (B, C, H, W); a view of channels-last maps, else a copy."""
    return x.flatten(2).transpose(1, 2).contiguous()


def split_heads(qkv: Tensor, head_channels: int, new_order: bool) -> tuple[Tensor, ...]:
    """q, k, v of shape (B, heads, L, head_channels) from tokens (B, L, 3C).

    Old order: q, k, v of the first head, then of the next one. New order: q of all heads, then k,
    then v.
    """
    heads = qkv.shape[2] // (3 * head_channels)
    if new_order:
        parts = qkv.unflatten(2, (3, heads, head_channels)).permute(2, 0, 3, 1, 4)
    else:
        parts = qkv.unflatten(2, (heads, 3, head_channels)).permute(3, 0, 2, 1, 4)
    return parts.unbind(0)


def join_heads(attended: Tensor) -> Tensor:
    """Tokens (B, L, C) from (B, heads, L, head_channels)."""
    return attended.transpose(1, 2).flatten(2)


class AttentionBlock(nn.Module):
    """Self-attention over all positions, with a residual connection."""

    def __init__(self, layout: ADMLayout, build: Builder, channels: int):
        super().__init__()
        self.head_channels = layout.head_channels(channels)
        self.new_order = layout.new_attention_order
        self.norm = build.norm(channels)
        self.qkv = build.pointwise(channels, 3 * channels)
        self.proj_out = zeroed(build.pointwise(channels, channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        tokens = tokens_of(self.norm(x))
        q, k, v = split_heads(self.qkv(tokens), self.head_channels, self.new_order)
        attended = self.proj_out(join_heads(F.scaled_dot_product_attention(q, k, v)))
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


class Stage(nn.Sequential):
    """A sequence of blocks that get the embedding; plain layers get the image only."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for block in self:
            takes_embedding = isinstance(block, (ResBlock, Resample, AttentionBlock))
            x = block(x, emb) if takes_embedding else block(x)
        return x
