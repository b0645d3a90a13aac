"""Core guider and sampler objects made from the pack's parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
from torch import Tensor


def cfg_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Core's CFG guider, so that other CFG patches apply."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def sampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """A SAMPLER that calls a k-diffusion style function with these options."""
    return comfy.samplers.KSAMPLER(function, extra_options=options)


class CountedSampler(comfy.samplers.KSAMPLER):
    """A sampler whose progress on the page goes to steps_of(model_sampling, sigmas)."""

    steps_of: Callable[[Any, Tensor], int]

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, *rest: Any, **more
    ) -> Tensor:
        """As core's, whose callback is given (step, denoised, x, steps)."""
        steps = self.steps_of(model_wrap.inner_model.model_sampling, sigmas)

        def counted(step: int, denoised: Tensor, x: Tensor, _: int) -> None:
            callback(step, denoised, x, steps)

        told = None if callback is None else counted
        return super().sample(model_wrap, sigmas, extra_args, told, *rest, **more)


def counted_sampler(
    inner: Any, function: Callable[..., Tensor], steps_of: Callable[[Any, Tensor], int]
) -> Any:
    """The SAMPLER `inner` with another function, which takes the same options."""
    sampler = CountedSampler(function, inner.extra_options, inner.inpaint_options)
    sampler.steps_of = steps_of
    return sampler


def noise_of_seed(x: Tensor, seed: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Core's noise sampler, called with (sigma, next sigma)."""
    return comfy.k_diffusion.sampling.default_noise_sampler(x, seed=seed)
