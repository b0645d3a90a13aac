"""The nodes, in a real ComfyUI, against the library's own runs."""

from __future__ import annotations

import pytest
import torch
from library_runs import guide, library_run, start_of
from sampler_runs import counted_calls, differ, drawn, few_sigmas, noise

from guidance import load_classifier as library_classifier

LABELS = [0, 3]
# Random classifiers have small gradients: a scale at which they steer visibly.
SCALE = 100.0


@pytest.fixture
def classifier(load_classifier):
    """A NOISY_CLASSIFIER."""
    return load_classifier("attention.safetensors")


@pytest.fixture
def model(load_model):
    """A MODEL without classes."""
    return load_model()[0]


@pytest.fixture
def sigmas(adm_sigmas):
    """Ten steps."""
    return adm_sigmas("ddim10")


@pytest.fixture
def library(files, sigmas):
    """The library's run of the same files, guided at that scale."""
    classifier = library_classifier(files["classifiers"] / "attention.safetensors")

    def run(scale, name="unconditional", **options):
        guides = [guide(classifier, LABELS, scale)] if scale else []
        path = files["diffusion_models"] / f"{name}.safetensors"
        return library_run(path, start_of(sigmas), "ddim10", guides=guides, **options)

    return run


@pytest.mark.parametrize("sampler", ["euler", "ddim", "ddim of the pack"])
def test_guided_ddim_equals_the_library(
    sampler_of, model, classifier, steered, wiring, sigmas, library, sampler
):
    guider = wiring.guider("basic", steered(model, classifier, scale=SCALE))
    got = drawn(guider, sigmas, sampler_of(sampler))
    expected = library(SCALE)
    assert differ(got, expected) < 1e-3
    assert differ(expected, library(0.0)) > 0.05


@pytest.mark.parametrize("cfg", [0.0, 1.0, 3.0])
def test_cfg_and_classifier_together_equal_the_library(
    load_model, classifier, steered, wiring, sigmas, library, cfg
):
    model = steered(load_model("conditional.safetensors")[0], classifier, scale=SCALE)
    got = drawn(wiring.cfg_guider(model, cfg), sigmas)
    expected = library(SCALE, "conditional", cfg=cfg, labels=torch.tensor([1, 2]))
    assert differ(got, expected) < 1e-3


def test_scale_zero_is_bit_identical(model, classifier, steered, wiring, sigmas):
    off = steered(model, classifier, scale=0.0)
    assert torch.equal(*(drawn(wiring.guider("basic", each), sigmas) for each in (model, off)))


def test_unloaded_and_reloaded_gives_the_same_image(model, classifier, steered, wiring, sigmas):
    import comfy.model_management

    guided = steered(model, classifier, scale=SCALE)
    first = drawn(wiring.guider("basic", guided), sigmas)
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
        # a device that is not the CPU would hand back tensors made in inference mode
        for parameter in classifier.patcher.model.parameters():
            parameter.data = parameter.data.clone()
    assert any(p.is_inference() for p in classifier.patcher.model.parameters())
    assert torch.equal(first, drawn(wiring.guider("basic", guided), sigmas))


def test_classify_image_names_the_classes(call, classifier):
    images = (noise().movedim(1, -1) + 1) / 2
    (text,) = call("ClassifyImage", classifier=classifier, image=images, top_k=2)
    first, _ = text.splitlines()
    probs = classifier.on_device().log_probs(noise(), 0.0).exp()[0]
    assert first.startswith(f"1: {int(probs.argmax())} {100 * probs.max():.1f} %")
    assert len(first.split(",")) == 2
    # an alpha channel is left out
    more = torch.cat([images, images[..., :1]], dim=-1)
    assert call("ClassifyImage", classifier=classifier, image=more, top_k=2) == (text,)


@pytest.mark.parametrize("cfg, passes", [(1.0, 1), (3.0, 2)])
def test_passes_of_both_networks(load_model, classifier, steered, wiring, cfg, passes):
    """At each step: one of the classifier, and of the big model what CFG alone takes."""
    model = load_model("conditional.safetensors")[0]
    images = counted_calls(model.model.diffusion_model)
    gradients = counted_calls(classifier.patcher.model)
    drawn(wiring.cfg_guider(steered(model, classifier), cfg), few_sigmas(model))
    assert (sum(images), gradients) == (4 * passes * 2, [2] * 4)
    off = steered(model, classifier, scale=0.0)
    drawn(wiring.cfg_guider(off, cfg), few_sigmas(model))
    assert gradients == [2] * 4
