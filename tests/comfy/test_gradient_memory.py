"""Memory of the classifier's gradient in a run: what ComfyUI is asked for, and what is done with
little of it."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import noise

BATCH = 4


@pytest.fixture
def steered(call, load_classifier):
    def run(model, count=1, name="attention.safetensors"):
        for _ in range(count):
            classifier = load_classifier(name)
            inputs = {"classifier": classifier, "label": "1", "scale": 100.0}
            model = call("ClassifierGuidance", model=model, **inputs)[0]
        return model

    return run


@pytest.fixture
def drawn(call, label_of):
    """What a short run draws."""

    def run(model):
        import comfy.samplers

        none = label_of(model, "")
        guider = call("ClassifierFreeGuidance", model=model, positive=none, negative=none, cfg=1.0)
        sigmas = call("ADMScheduler", model=model, respacing="ddim5", denoise=1.0)[0]
        x = noise(BATCH)
        with torch.inference_mode():
            return guider[0].sample(
                x, torch.zeros_like(x), comfy.samplers.sampler_object("euler"), sigmas, seed=0
            )

    return run


@pytest.fixture
def asked(monkeypatch, drawn):
    """What ComfyUI's loader is asked for in a run: memory that is to fit, and that has to."""
    import comfy.model_management

    load, seen = comfy.model_management.load_models_gpu, []

    def spy(models, memory_required=0, minimum_memory_required=None, **options):
        seen.append((memory_required, minimum_memory_required))
        return load(models, memory_required, minimum_memory_required=minimum_memory_required)

    def run(model):
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(comfy.model_management, "load_models_gpu", spy)
            drawn(model)
        return seen[0]

    return run


def gradient_of(pack_module, placed, recompute):
    """The estimate for the batch."""
    estimate = pack_module("guidance.classifiers.gradient_memory").gradient_bytes
    network = placed.classifier.network
    size = (network.layout.image_size,) * 2
    return BATCH * estimate(network.layout, size, torch.float32, recompute)


@pytest.mark.parametrize("count", [1, 2])
def test_comfyui_makes_room_for_gradients(
    pack_module, load_model, load_classifier, steered, asked, count
):
    model = load_model()[0]
    plain, guided = asked(model), asked(steered(model, count))
    # one after the other: two classifiers take no more than one
    for before, after, recompute in zip(plain, guided, (False, True), strict=True):
        assert after - before == pytest.approx(
            gradient_of(pack_module, load_classifier(), recompute)
        )
    assert asked(model) == plain
    assert "memory_required" not in vars(model.model)


@pytest.mark.parametrize("images", [1, 3, 4])
def test_short_of_memory_the_images_are_the_same(
    pack_module, monkeypatch, load_model, load_classifier, steered, drawn, images
):
    import comfy.model_management

    adapter = pack_module("nodes.host.comfy_adapter")
    model = steered(load_model()[0])
    expected = drawn(model)
    sizes = []
    again = gradient_of(pack_module, load_classifier(), recompute=True) / BATCH
    room = (images + 0.5) * again / (1 - adapter.SPARE_SHARE)
    network = model.get_additional_models()[0].model
    hook = network.register_forward_hook(
        lambda module, inputs, options, output: sizes.append((len(output), options)),
        with_kwargs=True,
    )
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kw: room)
    try:
        got = drawn(model)
    finally:
        hook.remove()
    assert max(size for size, _ in sizes) == images
    assert all(options == {"recompute": True} for _, options in sizes)
    assert (got - expected).abs().max() < 1e-4
    if images == BATCH:
        assert torch.equal(got, expected)
