"""CUDA graphs in runs of ComfyUI: the same images, and memory that is asked for and given back.

The graphs are those of fake_graphs.py.
"""

from __future__ import annotations

import pytest
import torch
from fake_graphs import FakeRecorder
from sampler_runs import drawn, few_sigmas, noise

STEPS = 10


@pytest.fixture
def recorders(pack_module, monkeypatch):
    """The recorders of all runs from now on."""
    module, made = pack_module("guidance.core.cuda_graph"), []

    def make():
        made.append(FakeRecorder())
        return made[-1]

    monkeypatch.setattr(module, "CUDARecorder", make)
    monkeypatch.setattr(pack_module("nodes.host.cuda_graphs"), "free_bytes", lambda device: 1e12)
    return made


@pytest.fixture
def run(wiring):
    """What a run draws, with so many steps."""
    return lambda model, steps=STEPS, kind="basic": drawn(
        wiring.guider(kind, model), few_sigmas(model, steps), start=noise(2)
    )


def switched_off(pack_module, monkeypatch):
    monkeypatch.setenv(pack_module("guidance.core.cuda_graph").OFF, "0")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["basic", "cfg 3"])
def test_a_run_draws_the_same_images(
    run, steered, unconditional, load_classifier, pack_module, recorders, monkeypatch, kind, count
):
    """Each classifier has a graph of its own, also of the same file."""
    model = unconditional
    for _ in range(count):
        model = steered(model, load_classifier(), "1")
    found = run(model, kind=kind)
    events = [event for recorder in recorders for event in recorder.events]
    assert events.count("record") == count
    assert events.count("start") == count * (STEPS - 1)
    switched_off(pack_module, monkeypatch)
    assert torch.equal(run(model, kind=kind), found)


def test_the_next_run_records_anew(run, steered, unconditional, load_classifier, recorders):
    """What a run recorded is given back when it ends: the next one may have other weights."""
    model = steered(unconditional, load_classifier(), "1")
    assert torch.equal(run(model), run(model))
    used = [recorder.events for recorder in recorders if "record" in recorder.events]
    assert len(used) == 2
    for events in used:
        assert events.count("record") == events.count("close") == 1 and events[-1] == "close"


def test_a_run_that_is_interrupted_gives_its_memory_back(
    wiring, steered, unconditional, load_classifier, recorders
):
    model = steered(unconditional, load_classifier(), "1")

    def callback(step, denoised, x, total):
        if step == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        drawn(wiring.guider("basic", model), few_sigmas(model, STEPS), callback=callback)
    used = [recorder.events for recorder in recorders if "record" in recorder.events]
    assert len(used) == 1 and used[0][-1] == "close"


@pytest.mark.parametrize("why", ["few steps", "seldom", "--disable-cuda-graphs", "no room"])
def test_when_nothing_is_recorded(
    run, steered, unconditional, load_classifier, recorders, pack_module, monkeypatch, why
):
    import comfy.cli_args

    if why == "--disable-cuda-graphs":  # of newer ComfyUIs
        monkeypatch.setattr(comfy.cli_args.args, "disable_cuda_graphs", True, raising=False)
    if why == "no room":
        monkeypatch.setattr(pack_module("nodes.host.cuda_graphs"), "free_bytes", lambda device: 0)
    options = {"gradient_interval": 2} if why == "seldom" else {}
    model = steered(unconditional, load_classifier(), "1", **options)
    run(model, 4 if why == "few steps" else STEPS)
    assert not any("record" in recorder.events for recorder in recorders)


def test_the_diffusion_model_keeps_its_room(
    run, steered, unconditional, load_classifier, pack_module, recorders, monkeypatch
):
    """A graph has its memory while the model predicts cond and uncond at once."""
    model, shapes = steered(unconditional, load_classifier(), "1"), []
    need = {"model": 1e6}

    def memory_required(shape, *_, **__):
        shapes.append(tuple(shape))
        return need["model"]

    monkeypatch.setattr(model.model, "memory_required", memory_required)
    monkeypatch.setattr(pack_module("nodes.host.cuda_graphs"), "free_bytes", lambda device: 1e9)
    for need["model"], recorded in ((1e6, True), (1e9, False)):
        run(model)
        assert (4, *noise(2).shape[1:]) in shapes
        assert any("record" in recorder.events for recorder in recorders) == recorded
        recorders.clear()
