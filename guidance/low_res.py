"""The small image that an ADM upsampler enlarges (Dhariwal & Nichol 2021, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

UPSCALE = 4  # 64 -> 256 and 128 -> 512


def check_low_res(low_res: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError when low_res (B, C, h, w) does not fit images of `shape` (B, C, H, W)."""
    height, width = low_res.shape[-2:]
    if (height * UPSCALE, width * UPSCALE) != tuple(shape[-2:]):
        raise ValueError(
            f"The low-res image is {width}x{height}, which an ADM upsampler enlarges to "
            f"{UPSCALE * width}x{UPSCALE * height}, but the image to draw is "
            f"{shape[-1]}x{shape[-2]}; resize one of them."
        )
    if len(low_res) not in (1, shape[0]):
        raise ValueError(
            f"There are {len(low_res)} low-res images for a batch of {shape[0]}; "
            f"give one for all of them, or {shape[0]}."
        )


def enlarged(low_res: Tensor, size: Sequence[int]) -> Tensor:
    """low_res (B, C, h, w) in [-1, 1] at H, W `size`, bilinear; goes beside x_t."""
    return F.interpolate(low_res, tuple(size), mode="bilinear")
