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


def noise_of_seed(x: Tensor, seed: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Core's noise sampler, called with (sigma, next sigma)."""
    return comfy.k_diffusion.sampling.default_noise_sampler(x, seed=seed)
