"""guided-diffusion's two samplers as a k-diffusion style function for ComfyUI."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ...guidance.core.noise import alpha_bar_from_sigma
from ...guidance.sampling.steps import (
    Step,
    ddim_step,
    ddpm_step,
    ddpm_variance,
    posterior_variance,
)
from ..host import hooks, model_info
from ..host.known_sigmas import once_per_step
from ..host.samplers import noise_of_seed
from ..host.side_outputs import SideOutputs


@once_per_step
@torch.no_grad()
def sample_adm(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Any = None,
    disable: bool | None = None,
    method: str = "ddpm",
    eta: float = 0.0,
    noise_sampler: Any = None,
) -> Tensor:
    """From x = x0 + sigma eps (B, C, H, W) at sigmas[0] to x0; falling sigmas (steps + 1,)."""
    if model_info.is_flow(model_info.sampling_of(model)):
        raise ValueError(
            "ADM Sampler works with EPS and V models, but this is a flow model; use a core sampler "
            "(euler) instead: Classifier Guidance works with all of them."
        )
    extra_args = extra_args or {}
    draw = noise_sampler or noise_of_seed(x, extra_args.get("seed"))
    options = extra_args.get("model_options", {})
    side_outputs, evaluation_args = SideOutputs(model.inner_model), extra_args
    if method == "ddpm":
        options = hooks.with_side_outputs(options, side_outputs)
        evaluation_args = {**extra_args, "model_options": options}
    for index, step in enumerate(steps_of(sigmas)):
        sigma, following = sigmas[index], sigmas[index + 1]
        side_outputs.begin()
        denoised = model(x, sigma * x.new_ones(len(x)), **evaluation_args)
        if callback is not None:
            state = {"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised}
            callback(state)
        without_noise = step.last or (method == "ddim" and eta == 0)
        noise = torch.zeros_like(x) if without_noise else draw(sigma, following)
        to_vp = (1 + sigma**2).sqrt()
        x_vp = x / to_vp
        if method == "ddpm":
            variance = ddpm_variance(step, side_outputs.v, x)
            gradient = side_outputs.gradient(x) * to_vp * _mask(model, sigma, extra_args)
            x_vp = ddpm_step(x_vp, denoised, variance, step, variance * gradient, noise)
        else:
            x_vp = ddim_step(x_vp, denoised, step, eta, noise)
        x = x_vp * (1 + following**2).sqrt()
    return x


def _mask(model: Any, sigma: Tensor, extra_args: dict) -> Tensor | float:
    """The inpainting mask: the masked part must not be guided."""
    mask = extra_args.get("denoise_mask")
    if mask is None:
        return 1.0
    # Differential Diffusion has a different mask at every sigma
    of_sigma = extra_args.get("model_options", {}).get("denoise_mask_function")
    if of_sigma is None:
        return mask
    options = {"model": model.inner_model, "sigmas": model.sigmas}
    return of_sigma(sigma[None], mask, extra_options=options)


def steps_of(sigmas: Tensor) -> list[Step]:
    """The reverse steps between neighbouring sigmas; an empty list for a single sigma.

    Raises ValueError if the sigmas do not fall.
    """
    if len(sigmas) < 2:
        return []
    for number, (now, following) in enumerate(itertools.pairwise(sigmas.tolist()), 1):
        if following >= now:
            raise ValueError(
                f"sigmas go from {now:.5g} to {following:.5g} in step {number}, but ADM Sampler "
                "needs falling sigmas; use the sigmas of ADM Scheduler."
            )
    alpha_bar = [float(value) for value in alpha_bar_from_sigma(sigmas.cpu().double())]
    floor = 1 - alpha_bar[-2]
    if len(alpha_bar) > 2:
        floor = posterior_variance(alpha_bar[-3], alpha_bar[-2])
    return [Step(-1, now, following, floor) for now, following in itertools.pairwise(alpha_bar)]
