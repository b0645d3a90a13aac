"""The strength of classifier guidance: its scale, and options that act on each image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.autograd import at_least_fp32
from ..core.host_copy import to_device
from ..core.noise import per_image, vp_scale


@dataclass(frozen=True, kw_only=True)
class Strength:
    """`scale` (one number, or one per image) and its options, which are off by default.

    entropy_limit: above 1, the scale grows with the classifier's certainty, at most by this
    factor (`entropy_factor`). cap: above 0, the guidance term is at most this fraction of the
    denoised image (`cap_factor`). label_smoothing: the fraction of the target that is spread over
    all classes (`classifiers.base.smoothed_target`). normalize: only the gradient's direction is
    used, so that a scale means the same for every classifier (`normalized_weight`). Raises
    ValueError for a value outside its range.
    """

    scale: float | tuple[float, ...]
    entropy_limit: float = 1.0
    cap: float = 0.0
    label_smoothing: float = 0.0
    normalize: bool = False

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

    @property
    def is_on(self) -> bool:
        """Whether it changes anything."""
        return any(self.scale) if isinstance(self.scale, tuple) else self.scale != 0

    def capped(self, term: Tensor, denoised: Tensor) -> Tensor:
        """The guidance term (B, ...), limited by the cap."""
        if self.cap == 0:
            return term
        return term * per_image(cap_factor(term, denoised, self.cap), term)


def normalized_weight(gradient: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """r / rms(gradient), (B,), with r = sigma / sqrt(alpha^2 + sigma^2), sigma and alpha (B,).

    r is the standard deviation of x0 given x for data of variance 1 (see `ImageClassifier`), so
    that at scale 1 guidance moves the denoised image by as much as the model leaves open: a scale
    means the same for every classifier, image size and space. A gradient of 0 has weight 0.
    """
    values = gradient.detach().float().flatten(1)
    largest = values.abs().amax(dim=1)
    # of values near 1, because squares of small ones are 0 in fp32
    size = largest * (values / largest[:, None]).square().mean(dim=1).sqrt()
    weight = sigma / vp_scale(sigma, alpha) / size
    return torch.where(largest == 0, 0, weight)


def _like(values: Tensor, scale: float | tuple[float, ...]) -> Tensor:
    """The scale with the dtype and device of `values`; does not wait for the device."""
    if isinstance(scale, tuple):
        return to_device(values.device, torch.tensor(scale, dtype=values.dtype))
    return values.new_full((), scale)


def entropy_factor(log_probs: Tensor, limit: float) -> Tensor:
    """min(ln K / H(p), limit), (B,), from log p of K classes (B, K); H is the entropy of p.

    When the classifier is sure, its gradient vanishes and the last steps drift. This factor
    compensates for it (Li et al. 2022, "Entropy-driven Sampling and Training Scheme for Conditional
    Diffusion Generation", eq. 7; the limit is added here, because H can be 0). The factor is at
    least 1, because the uniform p has the largest entropy.
    """
    log_probs = at_least_fp32(log_probs)
    entropy = torch.special.entr(log_probs.exp()).sum(dim=1)
    entropy = entropy.clamp(min=torch.finfo(entropy.dtype).tiny)  # of a sure p it is -0.0
    return (math.log(log_probs.shape[1]) / entropy).clamp(1.0, limit)


def cap_factor(term: Tensor, denoised: Tensor, cap: float) -> Tensor:
    """min(1, cap ||denoised|| / ||term||) of each image, (B,), for term, denoised (B, ...).

    After the bound on the length of a guidance update in Sadat et al. 2024, "Eliminating
    Oversaturation and Artifacts of High Guidance Scales in Diffusion Models", section 4; here it is
    relative to the image.
    """
    length, allowed = (v.float().flatten(1).norm(dim=1) for v in (term, denoised))
    return torch.where(length > cap * allowed, cap * allowed / length, torch.ones_like(length))
