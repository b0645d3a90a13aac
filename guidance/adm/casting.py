"""torch's layers, for weights kept in another precision than they are computed in.

Each casts its weights to its input's dtype when it is used, so a file in half precision takes half
the memory also where the device computes in fp32. Costs nothing where the dtypes agree.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .group_norm import FrozenGroupNorm

Embedding = nn.Embedding  # a lookup: the U-Net casts what comes out


def _cast(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = layer.bias
    return layer.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


class Linear(nn.Linear):
    """nn.Linear in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *_cast(self, x))


class Conv1d(nn.Conv1d):
    """nn.Conv1d in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *_cast(self, x))


class Conv2d(nn.Conv2d):
    """nn.Conv2d in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *_cast(self, x))


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm in its input's dtype; with frozen weights, a quicker gradient on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        # its sums over a map may be too large for fp16
        maps_on_cpu = x.ndim == 4 and x.device.type == "cpu" and x.dtype != torch.float16
        frozen = not (self.weight.requires_grad or self.bias.requires_grad)
        if maps_on_cpu and frozen and x.requires_grad and torch.is_grad_enabled():
            return FrozenGroupNorm.apply(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(x, self.num_groups, *_cast(self, x), self.eps)
