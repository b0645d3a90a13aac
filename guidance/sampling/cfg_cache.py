"""CFG's term used again: passes of the network that guidance can do without.

term = cond - uncond, of the denoised predictions. From one step to the next it changes less than
the predictions themselves, so a pass for uncond can be left out where the last term still holds
(after Castillo et al. 2023, "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion
Models", who leave it out from some step on).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.noise import per_image, vp_scale

# Evaluations that one term serves when the tolerance decides: at the start, where both predictions
# are near the means of their images, and at most.
FIRST, LONGEST = 4, 6


@dataclass(frozen=True)
class CFGCacheConfig:
    """When the term is computed.

    every: at each so-many-th evaluation. tolerance: above 0, at growing distances while the last
    term foretells the next one well, its error below half of this share of the run's longest term,
    and at shrinking ones where the error is above the whole; `every` is then the shortest distance.
    1 and 0 compute it always.
    """

    every: int = 1
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}; it must be at least 1.")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance:g}; it must be at least 0 and below 1.")

    @property
    def always(self) -> bool:
        """Whether nothing is used again."""
        return self.every == 1 and self.tolerance == 0


ALWAYS = CFGCacheConfig()


class CFGCache:
    """The last term of a run, and how long it may serve.

    Held in proportion to sigma / sqrt(alpha^2 + sigma^2): constant where there is mostly noise,
    where both predictions are near the means of their images, and like the difference of two eps
    where there is little.
    """

    def __init__(self, reuse: CFGCacheConfig):
        self.reuse = reuse
        self._term: Tensor | None = None
        self._distance = max(FIRST, reuse.every) if reuse.tolerance > 0 else reuse.every
        self._age = 0
        self._largest = 0.0

    def due(self) -> bool:
        """Whether this evaluation computes the term; asked once in each."""
        self._age += 1
        return self._term is None or self._age >= self._distance

    def renew(self, term: Tensor, sigma: Tensor, alpha: Tensor) -> None:
        """The term (B, ...) was computed at sigma, alpha (B,)."""
        if self._term is not None and self.reuse.tolerance > 0:
            self._adapt(self.at(sigma, alpha), term)
        self._term = term / per_image(_share(sigma, alpha).to(term), term)
        self._age = 0

    def at(self, sigma: Tensor, alpha: Tensor) -> Tensor:
        """The last term, as it is at this noise level."""
        assert self._term is not None
        return self._term * per_image(_share(sigma, alpha).to(self._term), self._term)

    def matches_shape(self, x: Tensor) -> bool:
        """Whether the term is one of such images."""
        return self._term is not None and self._term.shape == x.shape

    def _adapt(self, foretold: Tensor, term: Tensor) -> None:
        """A longer distance after a good guess, a shorter one after a bad one."""
        length, error = torch.stack([_length(term), _length(foretold - term)]).tolist()
        self._largest = max(self._largest, length)
        missed = error / max(self._largest, 1e-12)
        if missed > self.reuse.tolerance:
            self._distance = max(self.reuse.every, self._distance - 1)
        elif missed < self.reuse.tolerance / 2:
            self._distance = min(self._distance + 1, max(LONGEST, self.reuse.every))


def _length(values: Tensor) -> Tensor:
    """The L2 norm of each image (B, ...), averaged over the batch."""
    return values.float().flatten(1).norm(dim=1).mean()


def _share(sigma: Tensor, alpha: Tensor) -> Tensor:
    """sqrt(1 - alpha_bar) at that level, kept above 0."""
    return (sigma / vp_scale(sigma, alpha)).clamp(min=torch.finfo(torch.float32).tiny)
