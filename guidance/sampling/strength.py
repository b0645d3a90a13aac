"""How strongly a classifier is followed: its scale, and options that shape it image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.host_copy import to_device
from ..core.noise import per_image
from ..schedules.run_position import RunPosition
from ..schedules.schedule import GuidanceSchedule


@dataclass(frozen=True, kw_only=True)
class Strength:
    """`scale`, or one for each image, and its options, all of them off by default.

    entropy_limit: above 1, the scale grows with the classifier's certainty, at most by this
    factor (`entropy_factor`). cap: above 0, the guidance term is at most this share of the
    denoised image (`cap_factor`). label_smoothing: the share of the target that is spread over
    all classes (`smoothed_target`). Raises ValueError for a value outside its range.
    """

    scale: float | tuple[float, ...]
    entropy_limit: float = 1.0
    cap: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not all(math.isfinite(scale) for scale in scales):
            raise ValueError(f"scale is {self.scale}; it must be a finite number.")
        if not self.entropy_limit >= 1:
            raise ValueError(f"entropy_limit is {self.entropy_limit}; it must be 1 (off) or more.")
        if not self.cap >= 0:
            raise ValueError(f"cap is {self.cap}; it must be 0 (off) or more.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}; it must be 0 (off) or more, below 1."
            )

    def scales(self, log_probs: Tensor) -> Tensor:
        """The scale of each image (B,), from log p(y | x) of every class (B, classes)."""
        scales = _like(log_probs, self.scale).expand(len(log_probs))
        if self.entropy_limit == 1:
            return scales
        return scales * entropy_factor(log_probs, self.entropy_limit)

    def at(self, schedule: GuidanceSchedule, place: RunPosition, batch: int) -> Strength | None:
        """The same with the scale that the schedule has there; None where that is 0."""
        scales = schedule.scales(place, batch)
        each = tuple(scales) if isinstance(scales, list) else (scales,)
        return replace(self, scale=each) if any(each) else None

    def capped(self, term: Tensor, denoised: Tensor) -> Tensor:
        """The guidance term (B, ...), shortened where it is over the cap."""
        if self.cap == 0:
            return term
        return term * per_image(cap_factor(term, denoised, self.cap), term)


def _like(values: Tensor, scale: float | tuple[float, ...]) -> Tensor:
    """The scale with the dtype and on the device of `values`; nobody waits for it."""
    if isinstance(scale, tuple):
        return to_device(values.device, torch.tensor(scale, dtype=values.dtype))
    return values.new_full((), scale)


def entropy_factor(log_probs: Tensor, limit: float) -> Tensor:
    """min(ln K / H(p), limit), (B,), from log p of K classes (B, K); H is the entropy of p.

    Once the classifier is sure, its gradient vanishes and the last steps drift; this makes up
    for it (Li et al. 2022, "Entropy-driven Sampling and Training Scheme for Conditional Diffusion
    Generation", eq. 7; the limit is ours: H may be 0). At least 1: no p is more uncertain than
    the uniform one.
    """
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    entropy = torch.special.entr(log_probs.exp()).sum(dim=1)
    entropy = entropy.clamp(min=torch.finfo(entropy.dtype).tiny)  # of a sure p it is -0.0
    return (math.log(log_probs.shape[1]) / entropy).clamp(1.0, limit)


def cap_factor(term: Tensor, denoised: Tensor, cap: float) -> Tensor:
    """min(1, cap ||denoised|| / ||term||) of each image, (B,), for term, denoised (B, ...).

    The bound on the length of a guidance update of Sadat et al. 2024, "Eliminating Oversaturation
    and Artifacts of High Guidance Scales in Diffusion Models", section 4, here relative to the
    image.
    """
    length, allowed = (v.float().flatten(1).norm(dim=1) for v in (term, denoised))
    return torch.where(length > cap * allowed, cap * allowed / length, torch.ones_like(length))


def smoothed_target(label: Tensor, classes: int, smoothing: float) -> Tensor:
    """(1 - a) one_hot(label) + a / K, (B, K): the target whose log-likelihood is followed.

    label (B,), a = smoothing (Szegedy et al. 2016, "Rethinking the Inception Architecture",
    section 7).
    """
    exact = F.one_hot(label, classes).float()
    return (1 - smoothing) * exact + smoothing / classes
