"""The loop over the steps of a run (Dhariwal & Nichol 2021, algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..classifiers.base import SamplingPoint
from ..core.autograd import tracked
from ..schedules.run_position import RunPosition
from ..schedules.schedule import GuidanceSchedule
from .cfg_cache import NO_CACHE, CFGCache, CFGCacheConfig
from .classifier_guidance import Guide
from .denoise import Denoiser
from .model import DiffusionModel
from .nan_guard import NaNGuard
from .steps import Step, ddim_step, ddpm_step, ddpm_variance

METHODS = ("ddim", "ddpm")
Noise = Callable[[Tensor], Tensor]


@torch.no_grad()
def sample(
    model: DiffusionModel,
    x: Tensor,
    steps: Iterable[Step],
    *,
    method: str = "ddim",
    eta: float = 0.0,
    labels: Tensor | None = None,
    cfg: float | GuidanceSchedule = 1.0,
    cfg_cache: CFGCacheConfig = NO_CACHE,
    guides: Sequence[Guide] = (),
    low_res: Tensor | None = None,
    clip_denoised: bool = True,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Images x0 (B, C, H, W) from x_T ~ N(0, I), by `method` "ddim" or "ddpm".

    labels (B,) condition the model, with classifier-free guidance at scale `cfg`, a number or a
    schedule; `cfg_cache` says when its term is computed. `guides` add classifier guidance
    (algorithm 2 for ddim, algorithm 1 for ddpm). low_res (B, C, H/4, W/4), or one image for all, in
    [-1, 1] are the small images of an upsampler. x0 is clipped to [-1, 1] before classifier
    guidance, as in guided-diffusion. `noise(x)` is drawn once in every step, even if it is not
    used, so that the same seed gives the same noise as in guided-diffusion.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; expected 0 (no noise) to 1 (the noise of DDPM).")
    steps = list(steps)
    denoise, guard = Denoiser(model, labels, low_res, CFGCache(cfg_cache)), NaNGuard()
    for index, step in enumerate(steps):
        position = step_position(step, index, len(steps), len(model.schedule))
        active = [on for guide in guides if (on := guide.at(position, len(x)))]
        scale = cfg.scales(position, len(x)) if isinstance(cfg, GuidanceSchedule) else cfg
        with tracked(x, any(guide.needs_graph(x) for guide in active)) as x_in:
            x0, v = denoise(x_in, step, scale)
            x0 = x0.clamp(-1, 1) if clip_denoised else x0
            point = SamplingPoint.at(x_in, x0, (1 - step.alpha_bar) ** 0.5, step.alpha_bar**0.5)
            terms = [guide.term(point, guard) for guide in active]
        x0, v = x0.detach(), None if v is None else v.detach()
        drawn = noise(x)
        if method == "ddpm":
            variance = ddpm_variance(step, v, x)
            x = ddpm_step(x, x0, variance, step, _mean_shift(terms, variance, step), drawn)
        else:
            x = ddim_step(x, sum(terms, x0), step, eta, drawn)
    guard.finish()
    return x


def _mean_shift(terms: Sequence[Tensor], variance: Tensor, step: Step) -> Tensor | float:
    """Algorithm 1: Sigma times the sum of scale * grad log p(y | x_t)."""
    to_gradient = step.alpha_bar**0.5 / (1 - step.alpha_bar)  # removes the weight of the term
    return sum((variance * (term * to_gradient) for term in terms), 0.0)


def step_position(step: Step, index: int, steps: int, timesteps: int) -> RunPosition:
    """The position of step `index` in a run of `steps` steps through `timesteps` timesteps."""
    return RunPosition(
        percent=1 - step.timestep / max(timesteps - 1, 1),
        step=index,
        steps=steps,
        sigma=((1 - step.alpha_bar) / step.alpha_bar) ** 0.5,
    )
