#!/usr/bin/env python3
"""What schedules save and cost in a real ComfyUI: python benchmarks/schedules.py

One process, runs taken in turn, medians. Prints a Markdown table of ratios, on the digits' model: a
CFG interval over half of 40 steps and the pack's guider, both against core's CFGGuider; and the
overhead of a step with a schedule or a trace, against a model that takes 50 ms.
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


def core_guider(model, conds, cfg: float):
    """ComfyUI's own."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(cfg)
    return guider


def sampled(guider, size: int, batch: int) -> None:
    """One run of euler."""
    import comfy.samplers
    import torch

    sampling = guider.model_patcher.get_model_object("model_sampling")
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
    """Half of the steps with CFG, and all of them by the pack's guider, against core's."""
    model, conds = digits(nodes)
    half = call(nodes, "CFGScaleScheduler", model=model, schedule=interval_of(nodes, 4.0, 0.5))[0]
    both = {"positive": conds[0], "negative": conds[1]}
    guiders = {
        "full": core_guider(model, conds, 4.0),
        "half": core_guider(half, conds, 4.0),
        "ours": call(nodes, "ClassifierFreeGuidance", model=model, cfg=4.0, **both)[0],
    }

    def run(guider):
        return lambda: sampled(guider, 32, 8)

    medians = in_turn({name: run(guider) for name, guider in guiders.items()}, TURNS)
    full = medians["full"]
    yield medians["half"].row(f"CFG in half of {STEPS} steps", "CFG in all", full, 0.78)
    yield medians["ours"].row("Classifier-Free Guidance", "core's CFGGuider", full)


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

    def run_of(patched):
        guider = core_guider(patched, conds, 1.0)
        return lambda: sampled(guider, 32, 1)

    medians = in_turn(
        {
            name: run_of(model)
            for name, model in (("plain", plain), ("schedule", scheduled), ("trace", traced))
        }
    )
    step = STEPS * SLEEP
    for name, key in (("schedule with nothing to do", "schedule"), ("trace", "trace")):
        more = medians[key].seconds - medians["plain"].seconds
        yield Row(name, "a 50 ms step", more / step, 0.01)


if __name__ == "__main__":
    print_rows(rows())
