"""The original's samplers and step choice, for SamplerCustom and SamplerCustomAdvanced."""

from __future__ import annotations

import itertools
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..guidance.core.noise import alpha_bar_from_sigma
from ..guidance.sampling.loop import Step, ddim_step, ddpm_step, ddpm_variance, posterior_variance
from ..guidance.sampling.respacing import respaced_timesteps
from .host import comfy_adapter as adapter
from .sockets import CATEGORY


class ADMScheduler(io.ComfyNode):
    """The timesteps of the original's respacing strings, as sigmas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADMScheduler",
            display_name="ADM Scheduler",
            category=CATEGORY,
            description="Sigmas at the trained timesteps that guided-diffusion would visit.",
            search_aliases=["timestep respacing", "ddim25", "guided diffusion scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="The ADM model whose timesteps are meant."),
                io.String.Input(
                    "respacing",
                    default="ddim25",
                    tooltip='"250": that many, evenly. "ddim25": whole strides. "10,15,20": so '
                    "many in each third, least noisy third first.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of these steps to run, counted from the clean end.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom and its like.")],
        )

    @classmethod
    def execute(cls, model, respacing, denoise) -> io.NodeOutput:
        table = getattr(model.get_model_object("model_sampling"), "sigmas", None)
        if table is None:
            raise ValueError(
                "This model has no table of timesteps; use one of the core schedulers instead."
            )
        timesteps = respaced_timesteps(respacing, len(table))
        kept = timesteps[: round(denoise * len(timesteps))]
        if not kept:
            return io.NodeOutput(torch.FloatTensor([]))
        sigmas = table[torch.tensor(kept)].flip(0).float().cpu()
        return io.NodeOutput(torch.cat([sigmas, sigmas.new_zeros(1)]))


class SamplerADM(io.ComfyNode):
    """guided-diffusion's own two samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SamplerADM",
            display_name="ADM Sampler",
            category=CATEGORY,
            description="DDIM, or DDPM with the model's learned variance. With Classifier Guidance "
            "these are algorithms 2 and 1 of Dhariwal & Nichol 2021.",
            search_aliases=["DDPM", "DDIM", "guided diffusion sampler", "ancestral"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=["ddpm", "ddim"],
                    tooltip="ddpm: random steps, many of them. ddim: few steps, random by eta.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Of ddim only: 0 adds no noise, 1 as much as ddpm.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and its like.")],
        )

    @classmethod
    def execute(cls, method, eta) -> io.NodeOutput:
        options = {"method": method, "eta": eta}
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_adm, extra_options=options))


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
    """A k-diffusion style sampler: x = x0 + sigma eps (B, C, H, W), sigmas falling (steps + 1,)."""
    if adapter.is_flow(model.inner_model.inner_model.model_sampling):
        raise ValueError(
            "ADM Sampler steps through the noise of EPS and V models, but this is a flow model; "
            "use a core sampler (euler) instead: Classifier Guidance works with all of them."
        )
    extra_args = extra_args or {}
    draw = noise_sampler or comfy.k_diffusion.sampling.default_noise_sampler(
        x, seed=extra_args.get("seed")
    )
    for index, step in enumerate(steps_of(sigmas)):
        sigma, following = sigmas[index], sigmas[index + 1]
        asked = SideOutputRequest(model.inner_model, extra_args, method)
        denoised = model(x, sigma * x.new_ones(len(x)), **asked.extra_args)
        if callback is not None:
            state = {"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised}
            callback(state)
        to_vp = (1 + sigma**2).sqrt()
        x_vp = x / to_vp
        if method == "ddpm":
            variance = ddpm_variance(step, asked.variance.v, x)
            shift = variance * asked.gradient(x) * to_vp * _drawn(model, sigma, extra_args)
            noise = _noise(draw, step.last, sigma, following, x)
            x_vp = ddpm_step(x_vp, denoised, variance, step, shift, noise)
        else:
            noise = _noise(draw, step.last or eta == 0, sigma, following, x)
            x_vp = ddim_step(x_vp, denoised, step, eta, noise)
        x = x_vp * (1 + following**2).sqrt()
    return x


def _drawn(model: Any, sigma: Tensor, extra_args: dict) -> Tensor | float:
    """The inpainting mask: what is masked out must not be guided either."""
    mask = extra_args.get("denoise_mask")
    if mask is None:
        return 1.0
    # Differential Diffusion has another mask at every sigma
    of_sigma = extra_args.get("model_options", {}).get("denoise_mask_function")
    if of_sigma is None:
        return mask
    options = {"model": model.inner_model, "sigmas": model.sigmas}
    return of_sigma(sigma[None], mask, extra_options=options)


def _noise(draw: Any, unused: bool, sigma: Tensor, following: Tensor, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if unused else draw(sigma, following)


def steps_of(sigmas: Tensor) -> list[Step]:
    """The reverse steps between neighbouring sigmas, none for a single one.

    Raises ValueError for sigmas that do not fall.
    """
    if len(sigmas) < 2:
        return []
    _check_falling(sigmas.tolist())
    alpha_bar = [float(value) for value in alpha_bar_from_sigma(sigmas.cpu().double())]
    floor = 1 - alpha_bar[-2]
    if len(alpha_bar) > 2:
        floor = posterior_variance(alpha_bar[-3], alpha_bar[-2])
    pairs = zip(alpha_bar[:-1], alpha_bar[1:], strict=True)
    return [Step(-1, now, following, floor) for now, following in pairs]


def _check_falling(sigmas: list[float]) -> None:
    for number, (now, following) in enumerate(itertools.pairwise(sigmas), 1):
        if following >= now:
            raise ValueError(
                f"sigmas go from {now:.5g} to {following:.5g} in step {number}, but ADM Sampler "
                "needs each below the one before; use sigmas as ADM Scheduler gives them."
            )


class SideOutputRequest:
    """Asks one evaluation for the learned variance and, for ddpm, the bare classifier gradient."""

    def __init__(self, guider: Any, extra_args: dict, method: str):
        self.variance, self.gradients = adapter.LearnedVariance(guider), adapter.SideOutputs()
        self.extra_args = extra_args
        if method == "ddpm":
            options = extra_args.get("model_options", {})
            requested = adapter.request_side_outputs(options, self.variance, self.gradients)
            self.extra_args = {**extra_args, "model_options": requested}

    def gradient(self, x: Tensor) -> Tensor:
        """Sum of scale * grad log p(y | x) of all classifiers, in the sampler's coordinates."""
        return sum(self.gradients.items, torch.zeros_like(x))
