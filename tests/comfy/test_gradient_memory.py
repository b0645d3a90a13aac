"""Memory of the classifier's gradient: what a run requests, and what it does with little."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import drawn, noise

BATCH = 4


@pytest.fixture
def guided(load_classifier, steered):
    """The MODEL with so many classifiers in a row."""

    def run(model, count=1):
        for _ in range(count):
            model = steered(model, load_classifier("attention.safetensors"), "1", 100.0)
        return model

    return run


@pytest.fixture
def run(wiring, adm_sigmas):
    """What a short run draws."""
    return lambda model: drawn(
        wiring.guider("basic", model), adm_sigmas("ddim5"), start=noise(BATCH)
    )


@pytest.fixture
def requested(monkeypatch, run):
    """The memory that a run requests of ComfyUI's loader: what is to fit, and what has to."""
    import comfy.model_management

    load, seen = comfy.model_management.load_models_gpu, []

    def spy(models, memory_required=0, minimum_memory_required=None, **options):
        seen.append((memory_required, minimum_memory_required))
        return load(models, memory_required, minimum_memory_required=minimum_memory_required)

    def sampled(model):
        seen.clear()
        run(model)
        return seen[0]

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    return sampled


@pytest.fixture
def gradient_bytes(pack_module, load_classifier):
    """The estimate for one image."""
    estimate = pack_module("guidance.classifiers.gradient_memory").gradient_bytes
    layout = load_classifier("attention.safetensors").classifier.network.layout
    size = (layout.image_size,) * 2
    return lambda recompute: estimate(layout, size, torch.float32, recompute)


@pytest.mark.parametrize("count", [1, 2])
def test_comfyui_makes_room_for_gradients(load_model, guided, requested, gradient_bytes, count):
    model = load_model()[0]
    plain, more = requested(model), requested(guided(model, count))
    # one after the other: two classifiers take no more than one
    for before, after, recompute in zip(plain, more, (False, True), strict=True):
        assert after - before == pytest.approx(BATCH * gradient_bytes(recompute))
    assert requested(model) == plain
    assert "memory_required" not in vars(model.model)


@pytest.mark.parametrize("interrupted", [False, True])
def test_another_packs_estimate_is_used_and_stays(
    load_model, guided, requested, run, gradient_bytes, interrupted
):
    """Set on the base model itself: ours is added to it for a run, and taken away after it."""
    model, calls = load_model()[0], []

    def estimate(shape, *_, **__):
        if interrupted and len(calls) == 1:
            raise InterruptedError
        calls.append(shape)
        return 1000.0 * shape[0]

    model.model.memory_required = estimate
    if interrupted:
        with pytest.raises(InterruptedError):
            run(guided(model))
        assert len(calls) == 1
    else:
        plain, more = requested(model), requested(guided(model))
        for before, after, recompute in zip(plain, more, (False, True), strict=True):
            assert after - before == pytest.approx(BATCH * gradient_bytes(recompute))
        assert len(calls) >= 4
    assert vars(model.model)["memory_required"] is estimate


@pytest.mark.parametrize("images", [1, 3, 4])
def test_short_of_memory_the_images_are_the_same(
    pack_module, monkeypatch, load_model, guided, run, gradient_bytes, images
):
    import comfy.model_management

    spare = pack_module("nodes.host.memory").SPARE_SHARE
    model = guided(load_model()[0])
    expected, sizes = run(model), []
    room = (images + 0.5) * gradient_bytes(recompute=True) / (1 - spare)
    network = model.get_additional_models()[0].model
    hook = network.register_forward_hook(
        lambda module, inputs, options, output: sizes.append((len(output), options)),
        with_kwargs=True,
    )
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kw: room)
    try:
        got = run(model)
    finally:
        hook.remove()
    assert max(size for size, _ in sizes) == images
    assert all(options == {"recompute": True} for _, options in sizes)
    assert (got - expected).abs().max() < 1e-4
    if images == BATCH:
        assert torch.equal(got, expected)
