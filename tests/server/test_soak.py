"""Many prompts in one server: its memory does not grow."""

from __future__ import annotations

import itertools

import psutil
import pytest
from prompts import Queue, custom_sampler, guidance, guided_run, ksampler, node, write_models
from schedule_inputs import SCHEDULE_INPUTS

EARLY, ALL = 50, 300


def guided(seed):
    """Another label, scale and seed each time."""
    prompt = guided_run(batch=2, steps=3, seed=seed)
    options = {"entropy_limit": 4.0, "cap": 0.5, "gradient_interval": 1 + seed % 2}
    return prompt | {"guided": guidance(str(seed % 4), 1.0 + seed % 7, **options)}


def both(seed):
    """A scheduled CFG and two classifier guidances, traced."""
    prompt = guided_run(model="labels.safetensors", positive=str(seed % 4), batch=2)
    schedule = SCHEDULE_INPUTS | {"end": 0.5, "scale": 1.0 + seed % 5}
    return prompt | {
        "second": guidance("2", 5.0, "guided"),
        "schedule": node("GuidanceSchedule", **schedule),
        "cfg": node("CFGScaleScheduler", model=["second", 0], schedule=["schedule", 0]),
        "traced": node("GuidanceTrace", model=["cfg", 0]),
        "sampled": ksampler("traced", seed=seed, steps=3, cfg=3.0),
    }


def custom(seed):
    """The sampler and the steps of ADM."""
    guider = node("BasicGuider", model=["guided", 0], conditioning=["positive", 0])
    prompt = guided_run(label="0,3", batch=2) | {"guider": guider}
    return prompt | custom_sampler("guider", "3", seed)


def classified(seed):
    """The classifier also reads the images."""
    links = {"classifier": ["classifier", 0], "image": ["decoded", 0]}
    return guided(seed) | {"seen": node("ClassifyImage", **links, top_k=2)}


def wrong(seed):
    """A label that does not exist."""
    return guided(seed) | {"guided": guidance(f"nobody {seed}", 1.0)}


KINDS = (guided, both, guided, custom, classified, guided, wrong)


def resident(server):
    """The memory of the server's process in bytes: the largest of its process' children."""
    family = psutil.Process(server.process_id).children(recursive=True)
    return max(process.memory_info().rss for process in family)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_memory_stays_flat(comfyui, say_at_the_end):
    from comfy_server import ComfyServer

    memory = {}
    with ComfyServer(comfyui) as server:
        write_models(server.base)
        queue = Queue(server)
        for number, kind in zip(range(1, ALL + 1), itertools.cycle(KINDS), strict=False):
            ended = queue.run(kind(number))
            assert ended.status == ("error" if kind is wrong else "success"), ended.events
            if number % 60 == 0:
                server.request("/free", {"unload_models": True})
            if number in (EARLY, ALL):
                memory[number] = resident(server)
    grown = memory[ALL] / memory[EARLY] - 1
    say_at_the_end(f"soak: {memory[ALL] / 2**20:.0f} MB after {ALL} prompts ({100 * grown:+.1f} %)")
    assert abs(grown) < 0.03
