"""guided-diffusion's samplers and timesteps, for SamplerCustom and SamplerCustomAdvanced."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..guidance.sampling.respacing import respaced_timesteps
from .host.samplers import sampler
from .runtime.adm_sampler import sample_adm
from .sockets import CATEGORY


class ADMScheduler(io.ComfyNode):
    """The timesteps of guided-diffusion's respacing strings, as sigmas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADMScheduler",
            display_name="ADM Scheduler",
            category=CATEGORY,
            description="The sigmas of the timesteps that guided-diffusion would use.",
            search_aliases=["timestep respacing", "ddim25", "guided diffusion scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="The ADM model to sample."),
                io.String.Input(
                    "respacing",
                    default="ddim25",
                    tooltip='"250": 250 evenly spaced steps. "ddim25": 25 steps with a '
                    'whole-number stride. "10,15,20": 10, 15 and 20 steps in the three thirds of '
                    "the timesteps, from the cleanest to the noisiest.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the steps to run. Below 1, the noisiest steps are left "
                    "out.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, respacing, denoise) -> io.NodeOutput:
        table = getattr(model.get_model_object("model_sampling"), "sigmas", None)
        if table is None:
            raise ValueError(
                "model has no table of timesteps; use one of the core schedulers instead."
            )
        timesteps = respaced_timesteps(respacing, len(table))
        kept = timesteps[: round(denoise * len(timesteps))]
        if not kept:
            return io.NodeOutput(torch.FloatTensor([]))
        sigmas = table[torch.tensor(kept)].flip(0).float().cpu()
        return io.NodeOutput(torch.cat([sigmas, sigmas.new_zeros(1)]))


class SamplerADM(io.ComfyNode):
    """The two samplers of guided-diffusion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SamplerADM",
            display_name="ADM Sampler",
            category=CATEGORY,
            description="DDPM with the model's learned variance, or DDIM. With Classifier Guidance "
            "these are algorithms 1 and 2 of Dhariwal & Nichol 2021.",
            search_aliases=["DDPM", "DDIM", "guided diffusion sampler", "ancestral"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=["ddpm", "ddim"],
                    tooltip="ddpm: adds noise at every step and needs many steps. ddim: works with "
                    "few steps; eta sets the noise.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Only for ddim. 0: no noise is added. 1: as much noise as ddpm.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, method, eta) -> io.NodeOutput:
        return io.NodeOutput(sampler(sample_adm, method=method, eta=eta))
