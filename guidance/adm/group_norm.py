"""Group normalisation with frozen weights: the gradient with respect to its input alone.

torch's own gradient is slow on channels-last maps on a CPU, by far so in bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class FrozenGroupNorm(torch.autograd.Function):
    """y = (x - mean) rstd weight + bias, mean and rstd of each image and group (Wu & He 2018).

    x (B, C, H, W), weight and bias (C,); the statistics are kept in fp32 at least.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        batch, channels = x.shape[:2]
        y, mean, rstd = torch.native_group_norm(
            x,
            weight.to(exact),
            bias.to(exact),
            batch,
            channels,
            x.shape[2] * x.shape[3],
            groups,
            eps,
        )
        ctx.save_for_backward(x, mean, rstd, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mean, rstd, weight = ctx.saved_tensors
        return input_gradient(grad, x, mean, rstd, weight), None, None, None, None


def input_gradient(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    """dx = rstd (g - mean(g) - x_hat mean(g x_hat)), g = weight grad, means over the group.

    Written as grad * a + x * b + c with a (B, C) and b, c (B, groups): few passes over the maps.
    """
    batch, channels, height, width = x.shape
    per_group = (batch, mean.shape[1], -1)
    weight = weight.to(mean.dtype)

    def group_mean(sums: Tensor) -> Tensor:
        each = (sums.to(mean.dtype) * weight).view(per_group)
        return each.sum(dim=2) / (each.shape[2] * height * width)

    mean_g, mean_gx = group_mean(grad.sum((2, 3))), group_mean((grad * x).sum((2, 3)))
    slope = -(rstd**3) * (mean_gx - mean * mean_g)
    offset = -rstd * mean_g - mean * slope
    own = rstd[:, :, None] * weight.view(1, mean.shape[1], -1)

    def spread(values: Tensor) -> Tensor:
        full = values.view(per_group).expand(own.shape).reshape(batch, channels)
        return full.to(x.dtype).view(batch, channels, 1, 1)

    return torch.addcmul(spread(offset), grad, spread(own)).addcmul_(x, spread(slope))
