"""Schedules of different shapes side by side, with core's Create List: the help page's recipe."""

from __future__ import annotations

import numpy as np
from PIL import Image
from prompts import guided_run, ksampler, node, write_models
from schedule_inputs import SCHEDULE_INPUTS
from tiny_models import SIZE

SHAPES = {"constant": {"shape": "constant"}, "late": {"shape": "interval", "start": 0.6}}


def compared(server, queue, *shapes):
    """The picture of a run for each of these schedules."""
    prompt = guided_run(model="labels.safetensors", positive="1")
    for name in shapes:
        prompt[name] = node("GuidanceSchedule", **SCHEDULE_INPUTS | SHAPES[name])
    links = {f"inputs.input{k}": [name, 0] for k, name in enumerate(shapes)}
    prompt["list"] = node("CreateList", **links)
    prompt["cfg"] = node("CFGScaleScheduler", model=["model", 0], schedule=["list", 0])
    prompt["sampled"] = ksampler("cfg", cfg=4.0, steps=4)
    prompt["picture"] = node("GuidanceComparison", images=["decoded", 0], size=SIZE)
    prompt["shown"] = node("SaveImage", images=["picture", 0], filename_prefix="compared")
    ended = queue.run(prompt)
    assert ended.status == "success", ended.events
    (image,) = ended.outputs["shown"]["images"]
    return np.asarray(Image.open(server.base / "output" / image["filename"]).convert("RGB"))


def test_each_schedule_has_a_column(server, queue):
    """Each column is what its schedule draws alone."""
    write_models(server.base)
    both = compared(server, queue, *SHAPES)
    alone = [compared(server, queue, name) for name in SHAPES]
    edge = (alone[0].shape[1] - SIZE) // 2
    for one, start in zip(alone, (edge, both.shape[1] - edge - SIZE), strict=True):
        drawn = one[edge:-edge, edge:-edge]
        assert np.ptp(drawn) > 20  # not one colour
        assert np.array_equal(both[edge:-edge, start : start + SIZE], drawn)
    assert not np.array_equal(*alone)
