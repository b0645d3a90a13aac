#!/usr/bin/env python3
"""What schedules save and cost in a real ComfyUI: python benchmarks/schedules.py

One process, runs taken in turn, medians. Prints a Markdown table of ratios: a CFG interval over
half of 40 steps against CFG everywhere, on the digits' model; and the overhead of a step with a
schedule or a trace, against a model that takes 50 ms.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from harness import Row, find_comfyui, in_turn, load_pack, print_rows, start_comfyui

STEPS, SLEEP = 40, 0.05
TURNS = 9  # of the interval: single runs differ by a tenth and more on a shared machine


def rows() -> Iterator[Row]:
    """All of them."""
    comfyui = find_comfyui()
    nodes = start_comfyui(str(comfyui.path))
    load_pack(nodes)
    yield from interval_rows(nodes)
    yield from overhead_rows(nodes)


def call(nodes, node_id: str, **inputs):
    """A node's outputs."""
    import torch

    with torch.inference_mode():
        return nodes.NODE_CLASS_MAPPINGS[node_id].execute(**inputs).result


def interval_of(nodes, scale: float, end: float):
    """A CFG interval from the start, by the node."""
    schema = nodes.NODE_CLASS_MAPPINGS["GuidanceSchedule"].GET_SCHEMA()
    inputs = {one.id: one.default for one in schema.inputs}
    inputs |= {"shape": "interval", "axis": "step", "scale": scale, "end": end}
    return call(nodes, "GuidanceSchedule", **inputs)[0]


def sampled(model, conds, cfg: float, size: int, batch: int) -> None:
    """One run of euler."""
    import comfy.samplers
    import torch

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(cfg)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    noise = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    sampler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)


def digits(nodes):
    """The digits' MODEL and its conditionings of a class and of none."""
    loader = {"noise_schedule": "auto", "clip_denoised": True, "dtype": "fp32"}
    model = call(nodes, "ADMModelLoader", model_name="digits_adm.safetensors", **loader)[0]
    conds = [call(nodes, "ADMClassLabel", model=model, label=label)[0] for label in ("7", "")]
    return model, conds


def interval_rows(nodes):
    """Half of the steps with CFG, against all of them."""
    model, conds = digits(nodes)
    half = call(nodes, "CFGScaleScheduler", model=model, schedule=interval_of(nodes, 4.0, 0.5))[0]
    medians = in_turn(
        {
            "full": lambda: sampled(model, conds, 4.0, 32, 8),
            "half": lambda: sampled(half, conds, 4.0, 32, 8),
        },
        TURNS,
    )
    yield medians["half"].row(f"CFG in half of {STEPS} steps", "CFG in all", medians["full"], 0.78)


def overhead_rows(nodes):
    """A step's overhead beside a model that takes 50 ms, and does nothing else."""
    model, conds = digits(nodes)

    def slow(apply_model, args):
        end = time.perf_counter() + SLEEP
        while time.perf_counter() < end:
            pass
        return args["input"]

    plain = model.clone()
    plain.set_model_unet_function_wrapper(slow)
    one = interval_of(nodes, 1.0, 1.0)
    scheduled = call(nodes, "CFGScaleScheduler", model=plain, schedule=one)[0]
    traced = call(nodes, "GuidanceTrace", model=plain)[0]
    medians = in_turn(
        {
            "plain": lambda: sampled(plain, conds, 1.0, 32, 1),
            "schedule": lambda: sampled(scheduled, conds, 1.0, 32, 1),
            "trace": lambda: sampled(traced, conds, 1.0, 32, 1),
        }
    )
    step = STEPS * SLEEP
    for name, key in (("schedule with nothing to do", "schedule"), ("trace", "trace")):
        more = medians[key].seconds - medians["plain"].seconds
        yield Row(name, "a 50 ms step", more / step, 0.01)


if __name__ == "__main__":
    print_rows(rows())
