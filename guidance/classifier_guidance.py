"""Classifier guidance (Dhariwal & Nichol 2021), in the space that samplers work in."""

from __future__ import annotations

from torch import Tensor

from .noise import per_image


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
    term = per_image(factor, gradient) * gradient
    return term.to(gradient.dtype)


def mean_shift(gradient: Tensor, variance: Tensor, scale: Tensor | float) -> Tensor:
    """scale * Sigma * gradient, what algorithm 1 adds to the mean of a DDPM step.

    gradient is taken at x_t in VP coordinates; variance broadcasts with it.
    """
    return per_image(scale, gradient) * variance * gradient
