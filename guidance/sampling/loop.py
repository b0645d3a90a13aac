"""The loop over the steps of a run (Dhariwal & Nichol 2021, algorithms 1 and 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..classifiers.base import SamplingPoint
from ..core.autograd import tracked
from ..core.cuda_graph import GraphCache
from ..core.noise import levels_like
from ..schedules.run_position import RunPosition
from ..schedules.schedule import GuidanceSchedule
from .cfg_cache import NO_CACHE, CFGCache, CFGCacheConfig
from .classifier_guidance import Guide
from .denoise import Denoiser, Scale
from .model import DiffusionModel
from .nan_guard import NaNGuard
from .recurrence import check_repeats, noise_back, repeats_at
from .steps import Step, ddim_step, ddpm_step, ddpm_variance, vp_levels

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
    recurrence: int = 1,
    noise: Noise = torch.randn_like,
    progress: Callable[[int], object] = lambda images: None,
) -> Tensor:
    """Images x0 (B, C, H, W) from x_T ~ N(0, I), by `method` "ddim" or "ddpm".

    labels (B,) condition the model, with classifier-free guidance at scale `cfg`, a number or a
    schedule; `cfg_cache` says when its term is computed. `guides` add classifier guidance
    (algorithm 2 for ddim, algorithm 1 for ddpm). low_res (B, C, H/4, W/4), or one image for all, in
    [-1, 1] are the small images of an upsampler. x0 is clipped to [-1, 1] before classifier
    guidance, as in guided-diffusion. `noise(x)` is drawn once in every step, even if it is not
    used, so that the same seed gives the same noise as in guided-diffusion.

    recurrence: how often each step of a stretch is taken (see `turns`). Each further turn first
    draws the noise that is put back, then that of its step; to `cfg_cache` and to the cache of a
    guide it is an evaluation like any other. `progress(images)` is called after each evaluation.
    On NVIDIA GPUs, gradients are recorded as CUDA graphs (`GraphCache`).
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; expected 0 (no noise) to 1 (the noise of DDPM).")
    steps = list(steps)
    check_repeats(recurrence)
    denoise, guard = Denoiser(model, labels, low_res, CFGCache(cfg_cache)), NaNGuard()
    plan = list(turns(steps, len(model.schedule), recurrence))
    with contextlib.closing(GraphCache(len(plan))) as graphs:
        guides = [replace(guide, graphs=graphs.every(guide.cache.interval)) for guide in guides]
        for step, position, again in plan:
            if again:
                near, far = vp_levels(step.alpha_bar_prev), vp_levels(step.alpha_bar)
                x = noise_back(x, near, far, noise(x))
            active = [on for guide in guides if (on := guide.at(position, len(x)))]
            scale = cfg.scales(position, len(x)) if isinstance(cfg, GuidanceSchedule) else cfg
            x0, v, terms = _guided(denoise, x, step, scale, clip_denoised, active, guard)
            progress(len(x))
            drawn = noise(x)
            if method == "ddpm":
                variance = ddpm_variance(step, v, x)
                x = ddpm_step(x, x0, variance, step, _mean_shift(terms, variance, step), drawn)
            else:
                x = ddim_step(x, sum(terms, x0), step, eta, drawn)
        guard.finish()
    return x


def _guided(
    denoise: Denoiser,
    x: Tensor,
    step: Step,
    cfg: Scale,
    clip_denoised: bool,
    guides: Sequence[Guide],
    guard: NaNGuard,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """x0 (B, C, H, W) and v of the model at x, and the term of each guide."""
    with tracked(x, any(guide.needs_graph(x) for guide in guides)) as x_in:
        sigma, alpha = levels_like(x_in, *vp_levels(step.alpha_bar))
        for guide in guides:
            guide.start(x_in, sigma, alpha)
        x0, v = denoise(x_in, step, cfg)
        x0 = x0.clamp(-1, 1) if clip_denoised else x0
        point = SamplingPoint(x_in, x0, sigma, alpha)
        terms = [guide.term(point, guard) for guide in guides]
    return x0.detach(), None if v is None else v.detach(), terms


def _mean_shift(terms: Sequence[Tensor], variance: Tensor, step: Step) -> Tensor | float:
    """Algorithm 1: Sigma times the sum of scale * grad log p(y | x_t)."""
    to_gradient = step.alpha_bar**0.5 / (1 - step.alpha_bar)  # removes the weight of the term
    return sum((variance * (term * to_gradient) for term in terms), 0.0)


def turns(
    steps: Sequence[Step], timesteps: int, recurrence: int = 1
) -> Iterator[tuple[Step, RunPosition, bool]]:
    """Each evaluation of a run: its step, its position, and whether noise is put back before it.

    Steps from START_PERCENT to END_PERCENT of the model's timesteps are taken `recurrence` times,
    all others once; each turn of a step has the same position.
    """
    for index, step in enumerate(steps):
        position = step_position(step, index, len(steps), timesteps)
        for turn in range(repeats_at(position.percent, recurrence)):
            yield step, position, turn > 0


def step_position(step: Step, index: int, steps: int, timesteps: int) -> RunPosition:
    """The position of step `index` in a run of `steps` steps through `timesteps` timesteps."""
    return RunPosition(
        percent=1 - step.timestep / max(timesteps - 1, 1),
        step=index,
        steps=steps,
        sigma=((1 - step.alpha_bar) / step.alpha_bar) ** 0.5,
    )
