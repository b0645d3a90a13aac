"""A cache of the CFG term, which saves passes of the network.

term = cond - uncond, of the denoised predictions. It changes less from step to step than the
predictions, so the pass for uncond can be skipped while the last term is accurate enough (after
Castillo et al. 2023, "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion
Models", where it is skipped from some step on).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.host_copy import HostCopy
from ..core.noise import mean_norm, per_image, vp_scale

# The first interval and the longest one with a tolerance. At the start of a run both predictions
# are near the means of their images, so the term changes slowly.
FIRST, LONGEST = 4, 6
# How many evaluations after a measurement it counts. By then the device has the work of a whole
# evaluation before it, so waiting for the numbers of the one before does not make it idle. A fixed
# number, on every device: a run must not depend on when a copy arrives.
LATER = 2


@dataclass(frozen=True)
class CFGCacheConfig:
    """When the term is computed.

    interval: every N evaluations; 1 is always. tolerance: above 0, the interval adapts. It grows
    while the error of the cached term is below tolerance / 2, and shrinks when the error is above
    tolerance, both relative to the largest term of the run. `interval` is then the shortest one.
    """

    interval: int = 1
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"cfg_interval is {self.interval}; it must be at least 1.")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance:g}; it must be at least 0 and below 1.")

    @property
    def is_off(self) -> bool:
        """Whether the term is always computed."""
        return self.interval == 1 and self.tolerance == 0


NO_CACHE = CFGCacheConfig()


class CFGCache:
    """The last term of a run, and how long it is used.

    Stored relative to sigma / sqrt(alpha^2 + sigma^2). So it is constant at high noise, where both
    predictions are near the means of their images, and scales like a difference of two eps at low
    noise.
    """

    def __init__(self, config: CFGCacheConfig):
        self.config = config
        self._term: Tensor | None = None
        adaptive = config.tolerance > 0
        self._interval = max(FIRST, config.interval) if adaptive else config.interval
        self._age = 0
        self._evaluations = 0
        self._largest = 0.0
        # the length of each new term and the error of its prediction (2,), with its evaluation
        self._measured: deque[tuple[int, HostCopy]] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether no term was stored yet."""
        return self._term is None

    def due(self) -> bool:
        """Whether this evaluation computes the term; call it once per evaluation."""
        self._age += 1
        self._evaluations += 1
        while self._measured and self._measured[0][0] + LATER <= self._evaluations:
            self._adapt(*self._measured.popleft()[1].wait().tolist())
        return self.is_empty or self._age >= self._interval

    def store(self, term: Tensor, sigma: Tensor, alpha: Tensor) -> None:
        """Stores the term (B, ...) that was computed at sigma, alpha (B,)."""
        if self.matches_shape(term.shape) and self.config.tolerance > 0:
            missed = self.term_at(sigma, alpha) - term
            numbers = HostCopy(torch.stack([mean_norm(term), mean_norm(missed)]))
            self._measured.append((self._evaluations, numbers))
        self._term = term / per_image(_share(sigma, alpha).to(term), term)
        self._age = 0

    def term_at(self, sigma: Tensor, alpha: Tensor) -> Tensor:
        """The last term, rescaled to this noise level."""
        assert self._term is not None
        return self._term * per_image(_share(sigma, alpha).to(self._term), self._term)

    def matches_shape(self, shape: Sequence[int]) -> bool:
        """Whether the term has this shape."""
        return self._term is not None and tuple(self._term.shape) == tuple(shape)

    def _adapt(self, length: float, error: float) -> None:
        """A longer interval after a good prediction, a shorter one after a bad one."""
        self._largest = max(self._largest, length)
        missed = error / max(self._largest, 1e-12)
        if missed > self.config.tolerance:
            self._interval = max(self.config.interval, self._interval - 1)
        elif missed < self.config.tolerance / 2:
            self._interval = min(self._interval + 1, max(LONGEST, self.config.interval))


def _share(sigma: Tensor, alpha: Tensor) -> Tensor:
    """sqrt(1 - alpha_bar) at this level, clamped above 0."""
    return (sigma / vp_scale(sigma, alpha)).clamp(min=torch.finfo(torch.float32).tiny)
