"""DDPM and DDIM steps in VP coordinates.

DDPM: Ho et al. 2020, eq. 6-7, with the learned variance of Nichol & Dhariwal 2021, eq. 15.
DDIM: Song et al. 2021, eq. 12 and 16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One reverse step of a (respaced) chain, from alpha_bar to alpha_bar_prev > alpha_bar.

    `floor` is the variance of the last step, where the posterior variance is zero: the posterior
    variance of the step before.
    """

    timestep: int
    alpha_bar: float
    alpha_bar_prev: float
    floor: float

    @property
    def last(self) -> bool:
        return self.alpha_bar_prev >= 1.0

    @property
    def beta(self) -> float:
        return 1 - self.alpha_bar / self.alpha_bar_prev


def posterior_variance(alpha_bar: float, alpha_bar_prev: float) -> float:
    """beta_tilde = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta (Ho et al. 2020, eq. 7)."""
    return (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)


def chain(alpha_bar: Sequence[float], timesteps: Sequence[int]) -> list[Step]:
    """The steps through ascending `timesteps` of the schedule `alpha_bar`, noisiest first.

    Raises ValueError if the timesteps do not rise or are outside of the schedule.
    """
    rising = all(low < high for low, high in zip(timesteps, timesteps[1:], strict=False))
    if not timesteps or not rising or not 0 <= timesteps[0] <= timesteps[-1] < len(alpha_bar):
        raise ValueError(
            f"timesteps are {_shortened(timesteps)}; expected at least one, rising, from 0 to "
            f"{len(alpha_bar) - 1}."
        )
    values = [float(alpha_bar[t]) for t in timesteps]
    previous = [1.0, *values[:-1]]
    floor = posterior_variance(values[1], values[0]) if len(values) > 1 else 1 - values[0]
    steps = [
        Step(t, now, prev, floor) for t, now, prev in zip(timesteps, values, previous, strict=True)
    ]
    return steps[::-1]


def _shortened(timesteps: Sequence[int]) -> str:
    return str(list(timesteps[:8])) + ("..." if len(timesteps) > 8 else "")


def vp_levels(alpha_bar: float) -> tuple[float, float]:
    """sigma and alpha of x_t = alpha x0 + sigma eps."""
    return (1 - alpha_bar) ** 0.5, alpha_bar**0.5


def predict_x0(x: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """(x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)."""
    return x * (1 / alpha_bar) ** 0.5 - eps * (1 / alpha_bar - 1) ** 0.5


def ddpm_variance(step: Step, v: Tensor | None, like: Tensor) -> Tensor:
    """Sigma: between beta_tilde and beta, set by the network's `v` in [-1, 1]; beta without v."""
    if v is None:
        return torch.full_like(like[:1], step.floor if step.last else step.beta)
    share = (v + 1) / 2
    low = posterior_variance(step.alpha_bar, step.alpha_bar_prev) or step.floor
    return (share * math.log(step.beta) + (1 - share) * math.log(low)).exp()


def ddpm_step(
    x: Tensor, x0: Tensor, variance: Tensor, step: Step, shift: Tensor | float, noise: Tensor
) -> Tensor:
    """x_{t-1} ~ N(mu_tilde(x_t, x0) + shift, variance); without noise in the last step.

    shift: of algorithm 1 of Dhariwal & Nichol 2021, scale * variance * grad log p(y | x_t).
    """
    ab, prev, beta = step.alpha_bar, step.alpha_bar_prev, step.beta
    mean = (beta * prev**0.5 / (1 - ab)) * x0 + ((1 - prev) * (1 - beta) ** 0.5 / (1 - ab)) * x
    mean = mean + shift
    return mean if step.last else mean + variance.sqrt() * noise


def ddim_step(x: Tensor, x0: Tensor, step: Step, eta: float, noise: Tensor) -> Tensor:
    """The DDIM step at eta 0; at eta 1 it has the variance of DDPM's posterior."""
    ab, prev = step.alpha_bar, step.alpha_bar_prev
    eps = (x * (1 / ab) ** 0.5 - x0) / (1 / ab - 1) ** 0.5
    sigma = eta * posterior_variance(ab, prev) ** 0.5
    mean = x0 * prev**0.5 + eps * (1 - prev - sigma**2) ** 0.5
    return mean if step.last or sigma == 0 else mean + sigma * noise
