"""The small image that an ADM upsampler enlarges (Dhariwal & Nichol 2021, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..core.images import from_uint8, load_samples, open_picture

UPSCALE = 4  # 64 -> 256 and 128 -> 512


def check_low_res(low_res: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError if low_res (B, C, h, w) does not fit images of `shape` (B, C, H, W)."""
    height, width = low_res.shape[-2:]
    if (height * UPSCALE, width * UPSCALE) != tuple(shape[-2:]):
        raise ValueError(
            f"The low-res image is {width}x{height}, which an ADM upsampler enlarges to "
            f"{UPSCALE * width}x{UPSCALE * height}, but the image to draw is "
            f"{shape[-1]}x{shape[-2]}; resize one of them."
        )
    if low_res.shape[1] != shape[1]:
        raise ValueError(
            f"The low-res image has {low_res.shape[1]} channels, but the image to draw has "
            f"{shape[1]}; convert it."
        )
    if len(low_res) not in (1, shape[0]):
        raise ValueError(
            f"There are {len(low_res)} low-res images for a batch of {shape[0]}; "
            f"give one for all of them, or {shape[0]}."
        )


def enlarged(low_res: Tensor, size: Sequence[int]) -> Tensor:
    """low_res (B, C, h, w) in [-1, 1], bilinear at size H, W; concatenated with x_t."""
    return F.interpolate(low_res, tuple(size), mode="bilinear")


def read_low_res(path: str | Path) -> tuple[Tensor, list[int] | None]:
    """Small images (N, C, h, w) in [-1, 1] and their labels, from an .npz file of `sample`.

    Any other file is read as one RGB image without a label (None). Raises ValueError with the
    file's name if it is damaged.
    """
    if Path(path).suffix == ".npz":
        images, labels, _ = load_samples(path)
        return from_uint8(images), labels.tolist()
    return from_uint8(np.asarray(open_picture(path))[None]), None
