"""guided-diffusion's samplers and timesteps, for SamplerCustom and SamplerCustomAdvanced."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..guidance.sampling.recurrence import END_PERCENT, MOST_REPEATS, START_PERCENT
from ..guidance.sampling.respacing import respaced_timesteps
from .host.samplers import sampler
from .runtime.adm_sampler import sample_adm
from .runtime.recurrent_sampler import recurrent
from .schema import Schema, number


class ADMScheduler(io.ComfyNode):
    """The timesteps of guided-diffusion's respacing strings, as sigmas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ADMScheduler",
            search_aliases=["timestep respacing", "ddim25", "guided diffusion scheduler"],
            inputs=[
                io.Model.Input("model"),
                io.String.Input("respacing", default="ddim25"),
                number("denoise", 1.0, 0.0, 1.0, step=0.01),
            ],
            outputs=[io.Sigmas.Output()],
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
        return Schema(
            node_id="SamplerADM",
            search_aliases=["DDPM", "DDIM", "guided diffusion sampler", "ancestral"],
            inputs=[
                io.Combo.Input("method", options=["ddpm", "ddim"]),
                number("eta", 0.0, 0.0, 1.0, step=0.01),
            ],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, method, eta) -> io.NodeOutput:
        return io.NodeOutput(sampler(sample_adm, method=method, eta=eta))


class RecurrentSampler(io.ComfyNode):
    """Any SAMPLER, each step taken several times."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="RecurrentSampler",
            search_aliases=["recurrence", "time travel", "RePaint", "resample", "restart"],
            inputs=[
                io.Sampler.Input("sampler"),
                number("repeats", 2, 1, MOST_REPEATS),
                number("start_percent", START_PERCENT, 0.0, 1.0, step=0.01),
                number("end_percent", END_PERCENT, 0.0, 1.0, step=0.01),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, sampler, repeats, start_percent, end_percent) -> io.NodeOutput:
        node = getattr(cls.hidden, "unique_id", None)
        return io.NodeOutput(recurrent(sampler, repeats, start_percent, end_percent, node))
