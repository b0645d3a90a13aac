"""Recurrence: steps are taken several times, with noise put back between (also "time travel").

Lugmayr et al. 2022, "RePaint", algorithm 1; Bansal et al. 2023, "Universal Guidance for Diffusion
Models". Each time, guidance corrects what the model made of the last time's image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

# the stretch of a run that is repeated, unless another is chosen: 0 is the noisiest, 1 the cleanest
START_PERCENT, END_PERCENT = 0.0, 0.8
MOST_REPEATS = 100


def check_repeats(repeats: int) -> None:
    """Raises ValueError for a number of repeats that cannot be used."""
    if not 1 <= repeats <= MOST_REPEATS:
        raise ValueError(
            f"recurrence is {repeats}; it must be from 1 (each step is taken once) to "
            f"{MOST_REPEATS}."
        )


def repeats_at(percent: float, repeats: int) -> int:
    """How often the step at this percent of the model's timesteps is taken."""
    return repeats if START_PERCENT <= percent < END_PERCENT else 1


def noise_back(
    x: Tensor, near: tuple[float, float], far: tuple[float, float], noise: Tensor
) -> Tensor:
    """From x (B, ...) = alpha' x0 + sigma' eps at near = (sigma', alpha') back to far.

    k x + sqrt(sigma^2 - k^2 sigma'^2) noise with k = alpha / alpha', which has the distribution of
    alpha x0 + sigma eps at far = (sigma, alpha).
    """
    (sigma_near, alpha_near), (sigma, alpha) = near, far
    k = alpha / alpha_near
    return k * x + max(sigma**2 - (k * sigma_near) ** 2, 0.0) ** 0.5 * noise


def stretches(repeats: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first step, step after the last, repeats): each repeated step, and what lies between.

    Neighbouring steps that are taken once stay together, so that samplers that use earlier steps
    keep them.
    """
    parts: list[tuple[int, int, int]] = []
    for often, group in itertools.groupby(enumerate(repeats), key=lambda step: step[1]):
        steps = [index for index, _ in group]
        if often == 1:
            parts.append((steps[0], steps[-1] + 1, 1))
        else:
            parts += [(index, index + 1, often) for index in steps]
    return parts


def repeats_of_steps(sigmas: Tensor, repeats: int, first: float, last: float) -> list[int]:
    """How often each step from `sigmas` (steps + 1,) is taken: `repeats` in first >= sigma > last.

    A step to a higher sigma is taken once.
    """
    falls = sigmas[1:] < sigmas[:-1]
    inside = (sigmas[:-1] <= first) & (sigmas[:-1] > last) & falls
    return torch.where(inside, repeats, 1).tolist()
