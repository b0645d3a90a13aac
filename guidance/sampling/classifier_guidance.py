"""Classifier guidance (Dhariwal & Nichol 2021), in the space that samplers work in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..classifiers.base import Classifier
from ..core.noise import levels_like, per_image
from .nan_guard import NaNGuard
from .strength import Strength

Report = Callable[[Tensor, Tensor, Tensor], None]


def classifier_term(
    classifier: Classifier,
    x: Tensor,
    denoised: Tensor,
    sigma: Tensor | float,
    label: Tensor | int,
    strength: Strength,
    alpha: Tensor | float = 1.0,
    report: Report | None = None,
    watch: NaNGuard | None = None,
) -> Tensor:
    """What guidance adds to the denoised image (B, ...) at x = alpha x0 + sigma eps.

    scale * (sigma^2 / alpha) * grad_x log p(label | x), shaped by the options of `strength`; finite
    and continuous also where sigma / alpha is beyond the classifier's range. A classifier whose
    `through_model` is set needs `denoised` computed from x in torch's graph. `report` is called
    with the scales (B,), the term (B, ...) and log p(y | x) of every class (B, classes). Raises
    ValueError when the gradient is not finite; with the `watch` of a run, which does not wait for
    the device, that may be told by a later call, or when it is finished.
    """
    sigma, alpha = levels_like(x, sigma, alpha)
    seen = classifier.evidence(x, denoised, sigma, label, alpha, strength.label_smoothing)
    looking = watch or NaNGuard()
    looking.check(seen.gradient, x, sigma)
    if watch is None:
        looking.finish()
    scales = strength.scales(seen.log_probs)
    term = guidance_term(seen.gradient, seen.sigma, scales, seen.alpha)
    term = strength.capped(term, denoised.detach())
    if report is not None:
        report(scales, term, seen.log_probs)
    return term


def guide_denoised(
    denoised: Tensor,
    gradient: Tensor,
    sigma: Tensor | float,
    scale: Tensor | float,
    alpha: Tensor | float = 1.0,
) -> Tensor:
    """denoised + scale * (sigma^2 / alpha) * gradient, for x = alpha x0 + sigma eps.

    denoised, gradient (B, ...): E[x0 | x] and grad_x log p(y | x); sigma, scale, alpha: numbers
    or (B,). At scale 1 the result is E[x0 | x, y] (Tweedie's formula on both sides of Bayes'
    rule). It is algorithm 2 of the paper written for x0:
    eps_hat = eps - scale * sqrt(1 - alpha_bar) * gradient.
    """
    return denoised + guidance_term(gradient, sigma, scale, alpha)


def guidance_term(
    gradient: Tensor, sigma: Tensor | float, scale: Tensor | float, alpha: Tensor | float = 1.0
) -> Tensor:
    """scale * (sigma^2 / alpha) * gradient, what guidance adds to the denoised image."""
    factor = scale * (sigma**2 / alpha)
    if isinstance(factor, Tensor):
        factor = factor.to(torch.promote_types(gradient.dtype, torch.float32))
    term = per_image(factor, gradient) * gradient
    return term.to(gradient.dtype)


def mean_shift(gradient: Tensor, variance: Tensor, scale: Tensor | float) -> Tensor:
    """scale * Sigma * gradient, what algorithm 1 adds to the mean of a DDPM step.

    gradient is taken at x_t in VP coordinates; variance broadcasts with it.
    """
    return per_image(scale, gradient) * variance * gradient
