"""Looks: augmented copies of an image, over which a classifier's gradient is averaged.

One copy lets the gradient find pixels that only this classifier takes for the class. What small
moves and noise do not change is what other classifiers see, too. Compare the cutouts of Crowson et
al. 2022, "VQGAN-CLIP", and the randomized smoothing of Cohen et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.host_copy import to_device

MOST_LOOKS = 64
OfInputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """`count` looks at each image; 0 is the image itself.

    shift: the largest move, as a share of the image's sides. zoom: the largest change of size.
    flip: half of the looks are mirrored. noise: its standard deviation, for pixels in [-1, 1].
    Raises ValueError for values outside of their range.
    """

    count: int = 0
    shift: float = 1 / 16
    zoom: float = 0.1
    flip: bool = False
    noise: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MOST_LOOKS:
            raise ValueError(f"looks is {self.count}; it must be 0 (off) to {MOST_LOOKS}.")
        if not (0 <= self.shift < 0.5 and 0 <= self.zoom < 0.5 and self.noise >= 0):
            raise ValueError(
                f"looks have shift {self.shift}, zoom {self.zoom} and noise {self.noise}; the "
                "first two must be 0 to 0.5 and the noise at least 0."
            )

    def of(self, pixels: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """`count` looks (B, C, H, W) at pixels of that shape; a look is the same for all images.

        generator: on the CPU, so that all devices draw the same looks.
        """
        height, width = pixels.shape[-2:]
        margin = [math.ceil((self.shift + self.zoom / 2) * side) for side in (height, width)]
        padded = F.pad(pixels, (margin[1], margin[1], margin[0], margin[0]), mode="replicate")
        moves = drawn(self.count, generator)
        return [self._look(padded, (height, width), margin, *move) for move in moves]

    def _look(
        self,
        padded: Tensor,
        size: tuple[int, int],
        margin: list[int],
        down: float,
        right: float,
        larger: float,
        mirrored: float,
    ) -> Tensor:
        """The look of four random numbers in [0, 1)."""
        share = 1 + self.zoom * (2 * larger - 1)
        window = padded
        for dim, move in ((-2, down), (-1, right)):
            side = size[dim]
            length = round(share * side)
            start = margin[dim] + (side - length) / 2 + self.shift * side * (2 * move - 1)
            window = window.narrow(dim, _within(start, window.shape[dim] - length), length)
        if window.shape[-2:] != size:
            window = F.interpolate(window, size, mode="bilinear", antialias=True)
        return window.flip(-1) if self.flip and mirrored < 0.5 else window


def drawn(count: int, generator: torch.Generator | None) -> list[list[float]]:
    """Four random numbers in [0, 1) for each look."""
    return torch.rand(count, 4, generator=generator).tolist()


def _within(start: float, most: int) -> int:
    return min(max(round(start), 0), most)


NO_LOOKS = Looks()


class LooksMemory:
    """How many looks the network reads at once: all, or fewer where memory was short."""

    def __init__(self, count: int):
        self.count = self.at_once = max(count, 1)

    @property
    def is_short(self) -> bool:
        return self.at_once < self.count

    @property
    def can_shrink(self) -> bool:
        return self.at_once > 1

    def shrink(self) -> None:
        self.at_once = (self.at_once + 1) // 2

    def over_parts(self, log_probs: OfInputs, inputs: Tensor) -> Tensor:
        """log_probs of inputs (looks, B, ...) as (looks, B, classes).

        In parts, only one part's activations are kept at a time; backward computes them again.
        """
        count, batch = inputs.shape[:2]
        if self.at_once >= count:
            return log_probs(inputs.flatten(0, 1)).unflatten(0, (count, batch))
        parts = inputs.split(self.at_once)
        found = [checkpoint(log_probs, part.flatten(0, 1), use_reentrant=False) for part in parts]
        return torch.cat(found).unflatten(0, (count, batch))


def log_mean_exp(log_probs: Tensor) -> Tensor:
    """log of the mean probability (B, classes) over looks (looks, B, classes)."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))


def noise_like(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise in the shape of inputs, from a generator on the CPU."""
    return to_device(inputs.device, torch.randn(inputs.shape, generator=generator)).to(inputs)
