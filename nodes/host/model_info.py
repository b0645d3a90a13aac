"""Properties of a MODEL: its coordinates, its noise, its latent space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.latent_formats
import comfy.model_sampling
import torch
from torch import Tensor

PIXELS = "rgb"


def levels_of(model_sampling: Any, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """sigma, alpha of x = alpha x0 + sigma eps, from the sampler's sigma.

    Flow models have x = (1 - sigma) x0 + sigma noise_scale eps, the others x = x0 + sigma eps.
    """
    if is_flow(model_sampling):
        return sigma * getattr(model_sampling, "noise_scale", 1.0), 1 - sigma
    return sigma, torch.ones_like(sigma)


def sampling_of(denoise: Any) -> Any:
    """The model sampling behind what a SAMPLER's function is given."""
    return denoise.inner_model.inner_model.model_sampling


def active_conditionings(conds: list, sigma: Callable[[], float]) -> tuple:
    """The uuids of the conditionings that act at sigma(): they tell one prompt from another."""
    timed = any("timestep_start" in one or "timestep_end" in one for each in conds for one in each)
    level = sigma() if timed else 0.0  # only for these, because it may wait for the device

    def acts(one: dict) -> bool:
        start, end = one.get("timestep_start"), one.get("timestep_end")
        return (start is None or level <= start) and (end is None or level >= end)

    return tuple(tuple(one.get("uuid") for one in each if acts(one)) for each in conds)


def is_flow(model_sampling: Any) -> bool:
    """Whether the sampler's x is (1 - sigma) x0 + sigma eps."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def starts_from_an_image(model_sampling: Any) -> bool:
    """Whether the sampler's x is an image to transform, without noise."""
    kinds = (comfy.model_sampling.IMG_TO_IMG, comfy.model_sampling.IMG_TO_IMG_FLOW)
    return isinstance(model_sampling, kinds)


def latent_channels(patcher: Any) -> int:
    """Channels of the sampler's x for this MODEL."""
    return patcher.get_model_object("latent_format").latent_channels


def latent_dimensions(patcher: Any) -> int:
    """2 for images, 3 for video, 1 for sound."""
    return getattr(patcher.get_model_object("latent_format"), "latent_dimensions", 2)


def is_single_frame(x: Tensor) -> bool:
    """Whether a latent is an image in a video model's shape, (B, C, 1, H, W)."""
    return x.ndim == 5 and x.shape[2] == 1


def space_of(patcher: Any) -> str:
    """The name of the sampler's space: "rgb", or the latent format."""
    found = patcher.get_model_object("latent_format")
    return (
        PIXELS if isinstance(found, comfy.latent_formats.ChromaRadiance) else type(found).__name__
    )


def to_model_space(patcher: Any, samples: Tensor) -> Tensor:
    """Latents of a VAE (N, C, H, W) or (N, C, 1, H, W) in the sampler's scaling, (N, C, H, W)."""
    images = samples.squeeze(2) if is_single_frame(samples) else samples
    video = latent_dimensions(patcher) == 3
    x0 = images.unsqueeze(2).clone() if video else images.clone()
    x0 = patcher.get_model_object("latent_format").process_in(x0).float()
    return x0.squeeze(2) if video else x0
