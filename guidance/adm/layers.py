"""torch's layers, for weights kept in another precision than they are computed in.

Each casts its weights to its input's dtype when it is used, so a file in half precision takes half
the memory also where the device computes in fp32. Costs nothing where the dtypes agree.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from . import frozen, packed

Embedding = nn.Embedding  # a lookup: the U-Net casts what comes out


def _cast(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = layer.bias
    return layer.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


class Linear(nn.Linear):
    """nn.Linear in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *_cast(self, x))


class Conv1d(packed.Forgetting, nn.Conv1d):
    """nn.Conv1d in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *_cast(self, x))


class Conv2d(packed.Forgetting, nn.Conv2d):
    """nn.Conv2d in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return frozen.conv2d(
            x, self.weight, self.bias, self.stride, tuple(self.padding), layer=self
        )


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm in its input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return frozen.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
