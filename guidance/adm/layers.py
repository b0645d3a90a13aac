"""torch's layers for frozen weights, which may be stored in another precision than the computation.

Each layer casts its weights to the dtype of its input. So a file in half precision needs half the
memory, also if the device computes in fp32. With frozen weights, only the gradient of the input is
computed: torch would keep the input of a convolution for an unused gradient, and the gradient of
its group norm is slow on channels-last maps on a CPU, especially in bf16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Embedding = nn.Embedding  # only a lookup; the U-Net casts its output


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


class Linear(nn.Linear):
    """nn.Linear in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *_cast(x, self.weight, self.bias))


class Conv1d(nn.Conv1d):
    """nn.Conv1d in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *_cast(x, self.weight, self.bias))


class Conv2d(nn.Conv2d):
    """nn.Conv2d in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, tuple(self.padding))


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def only_input_tracked(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether gradients flow to x and not to the weights."""
    frozen = not any(weight is not None and weight.requires_grad for weight in weights)
    return frozen and x.requires_grad and torch.is_grad_enabled()


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
    """F.conv2d in x's dtype; does not keep x if the weights are frozen."""
    if only_input_tracked(x, weight, bias):
        return FrozenConv2d.apply(x, weight, bias, stride, padding)
    return F.conv2d(x, *_cast(x, weight, bias), stride, padding)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """F.group_norm in x's dtype; x (B, C, ...)."""
    # in fp16 the sums over a map may overflow
    quicker = x.ndim == 4 and x.device.type == "cpu" and x.dtype != torch.float16
    if quicker and only_input_tracked(x, weight, bias):
        return FrozenGroupNorm.apply(x, groups, weight, bias, eps)
    maps = summed_well(x)
    y = F.group_norm(maps, groups, *_cast(x, weight, bias), eps)
    return y if maps is x else y.contiguous(memory_format=torch.channels_last)


def summed_well(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) whose sums torch's group norm does well.

    On a CPU it adds up channels-last maps one value after another: of 512x512 its fp32 result is
    off by 1e-5, thirty times as much as of contiguous maps. Small maps are not worth the copy.
    """
    large = x.ndim == 4 and x.device.type == "cpu" and x[0, 0].numel() > 64 * 64
    return x.contiguous() if large else x


def mean_2x2(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) at half their size, H and W even; does not keep x for a gradient."""
    return Mean2x2.apply(x)


class Mean2x2(torch.autograd.Function):
    """The mean of each 2x2 pixels. Its gradient by torch takes several times as long on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.avg_pool2d(x, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return F.interpolate(grad / 4, scale_factor=2.0, mode="nearest")


class FrozenConv2d(torch.autograd.Function):
    """y = weight * x + bias. Keeps the stored weight and casts it again for the gradient."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple,
        padding: tuple,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.format = torch.channels_last if last else torch.contiguous_format
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        # torch only uses the shape and the memory format of the input
        x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.format)
        gradient, _, _ = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight.to(grad.dtype),
            None,
            ctx.stride,
            ctx.padding,
            (1, 1),
            False,
            (0, 0),
            1,
            (True, False, False),
        )
        return gradient, *(None,) * 4


class FrozenGroupNorm(torch.autograd.Function):
    """y = (x - mean) rstd weight + bias, mean and rstd of each image and group (Wu & He 2018).

    x (B, C, H, W), weight and bias (C,); the statistics are at least fp32.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        batch, channels = x.shape[:2]
        maps = summed_well(x)
        y, mean, rstd = torch.native_group_norm(
            maps,
            weight.to(exact),
            bias.to(exact),
            batch,
            channels,
            x.shape[2] * x.shape[3],
            groups,
            eps,
        )
        ctx.save_for_backward(x, mean, rstd, weight)
        return y if maps is x else y.contiguous(memory_format=torch.channels_last)

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
