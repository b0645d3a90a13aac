"""The original's samplers and step choice, for SamplerCustom and SamplerCustomAdvanced."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..guidance.sampling.respacing import respaced_timesteps
from .host.samplers import sampler
from .runtime.adm_sampler import sample_adm
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
        return io.NodeOutput(sampler(sample_adm, method=method, eta=eta))
