"""A SAMPLER that takes steps several times, with noise put back between."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ...guidance.sampling.recurrence import noise_back, repeats_of_steps, stretches
from ..host import model_info
from ..host.samplers import counted_sampler, noise_of_seed
from ..host.server import show_on_node

# They choose their own steps, or need more than one at a time.
UNFIT = {
    "dpm_fast_function": "dpm_fast",
    "dpm_adaptive_function": "dpm_adaptive",
    "sample_unipc": "uni_pc",
    "sample_unipc_bh2": "uni_pc_bh2",
}


def recurrent(sampler: Any, repeats: int, start: float, end: float, node: str | None = None) -> Any:
    """The SAMPLER with recurrence from percent `start` to `end`; node: where it warns.

    Raises ValueError for a sampler that cannot take single steps.
    """
    function = getattr(sampler, "sampler_function", None)
    if function is None:
        raise ValueError(
            f"sampler is a {type(sampler).__name__}, which has no steps to repeat; use a SAMPLER "
            "of KSamplerSelect or ADM Sampler."
        )
    name = getattr(function, "__name__", "")
    if name in UNFIT:
        raise ValueError(
            f"sampler is {UNFIT[name]}, which cannot take single steps; use another, such as "
            "euler, heun or dpmpp_2m."
        )
    if start >= end:
        raise ValueError(
            f"start_percent is {start:g} and end_percent {end:g}; the end must be after the start."
        )

    def taken(sampling: Any, sigmas: Tensor) -> list[int]:
        first, last = (float(sampling.percent_to_sigma(percent)) for percent in (start, end))
        return repeats_of_steps(sigmas.cpu(), repeats, first, last)

    def sample(model: Any, x: Tensor, sigmas: Tensor, **run: Any) -> Tensor:
        often = taken(model_info.sampling_of(model), sigmas)
        if max(often, default=1) == 1:
            if repeats > 1:
                show_on_node(
                    "Recurrent Sampler repeats nothing: no step of this run lies from "
                    f"start_percent {start:g} to end_percent {end:g}.",
                    node,
                )
            return function(model, x, sigmas, **run)
        return sample_repeatedly(function, often, model, x, sigmas, **run)

    return counted_sampler(sampler, sample, lambda *run: sum(taken(*run)))


def sample_repeatedly(
    function: Callable[..., Tensor],
    often: list[int],
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Callable[[dict], None] | None = None,
    disable: bool | None = None,
    **options: Any,
) -> Tensor:
    """From x at sigmas[0] to sigmas[-1] by a k-diffusion style function; often: of each step."""
    extra_args = extra_args or {}
    draw = noise_of_seed(x, extra_args.get("seed"))
    if "noise_sampler" in inspect.signature(function).parameters:
        # its own would begin anew at each call
        options = {"noise_sampler": draw, **options}
    sampling = model_info.sampling_of(model)
    levels = [
        tuple(map(float, model_info.levels_of(sampling, sigma))) for sigma in sigmas.double().cpu()
    ]
    with tqdm(total=sum(often), disable=disable) as bar:
        for first, following, repeats in stretches(often):
            for turn in range(repeats):
                if turn:
                    noise = draw(sigmas[following], sigmas[first])
                    x = noise_back(x, levels[following], levels[first], noise)
                before = bar.n

                def count(state: dict, before: int = before) -> None:
                    bar.update(before + state["i"] + 1 - bar.n)
                    if callback is not None:
                        callback({**state, "i": before + state["i"]})

                part = sigmas[first : following + 1]
                call = {"extra_args": extra_args, "callback": count, "disable": True}
                x = function(model, x, part, **call, **options)
                bar.update(before + following - first - bar.n)
    return x
