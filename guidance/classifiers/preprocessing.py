"""The preprocessing of an image classifier in torch, so that gradients flow through it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.host_copy import to_device

HALF = (0.5, 0.5, 0.5)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From pixels in [-1, 1] to the network's input: resize, crop, normalise.

    resize: H, W, or the length of the shorter side; None keeps the size. crop: H, W of the center,
    padded with black if the image is smaller. mean, std: of pixels in [0, 1]. bgr: the order of the
    channels. crop_down: half of an odd difference is rounded down, as in transformers, and not to
    the nearest even number, as in torchvision. Raises ValueError for invalid values.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    interpolation: str = "bilinear"
    bgr: bool = False
    crop_down: bool = False

    def __post_init__(self) -> None:
        sizes = (self.resize,) if isinstance(self.resize, int) else (self.resize or ())
        if any(length < 1 for length in (*sizes, *(self.crop or ()))):
            raise ValueError(f"resize is {self.resize} and crop {self.crop}; both must be positive")
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(f"mean is {self.mean} and std {self.std}; std must be above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation is {self.interpolation!r}; expected {', '.join(INTERPOLATIONS)}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """From pixels (B, C, H, W) in about [-1, 1] to the network's input."""
        pixels = _cropped(self._resized((x + 1) / 2), self.crop, self.crop_down)
        pixels = pixels.flip(1) if self.bgr else pixels
        return (pixels - _channels(self.mean, pixels)) / _channels(self.std, pixels)

    def of_difference(self, difference: Tensor) -> Tensor:
        """The change (..., C, H, W) of the network's input for a change of its resized pixels."""
        return difference / 2 / _channels(self.std, difference)

    def _resized(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if self.resize is None:
            return pixels
        if isinstance(self.resize, int):
            short = min(height, width)
            # rounded down, as torchvision and transformers do
            size = (height * self.resize // short, width * self.resize // short)
        else:
            size = self.resize
        if size == (height, width):
            return pixels
        if self.interpolation == "nearest":
            return F.interpolate(pixels, size, mode="nearest-exact")
        return F.interpolate(pixels, size, mode=self.interpolation, antialias=True)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return to_device(like.device, torch.tensor(values, dtype=like.dtype)).view(-1, 1, 1)


def _cropped(pixels: Tensor, size: tuple[int, int] | None, down: bool) -> Tensor:
    if size is None or size == tuple(pixels.shape[-2:]):
        return pixels
    missing = [wanted - found for wanted, found in zip(size, pixels.shape[-2:], strict=True)]
    # halves of an odd number of missing pixels are rounded down; of one to crop, see crop_down
    top, left = (int(m / 2) if down or m > 0 else round(m / 2) for m in missing)
    # negative margins crop
    return F.pad(pixels, (left, missing[1] - left, top, missing[0] - top))
