"""The nodes, in a real ComfyUI, against the library's own runs."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import SEED, few_sigmas, noise, sampler_named, with_guider
from tiny_models import CLASSES, SIZE

from guidance import load_adm, load_classifier
from guidance.sampling.loop import Guide, chain, sample
from guidance.sampling.respacing import respaced_timesteps

LABELS = [0, 3]
# Random classifiers have small gradients: a scale at which they steer visibly.
SCALE = 100.0


@pytest.fixture
def load(load_model, load_classifier):
    """(MODEL, NOISY_CLASSIFIER) from the small files."""

    def run(name="unconditional"):
        return load_model(f"{name}.safetensors")[0], load_classifier("attention.safetensors")

    return run


def guider_of(call, model, labels="", negative=None, cfg=1.0):
    (positive,) = call("ADMClassLabel", model=model, label=labels)
    other = positive
    if negative is not None:
        (other,) = call("ADMClassLabel", model=model, label=negative)
    return call("ClassifierFreeGuidance", model=model, positive=positive, negative=other, cfg=cfg)[
        0
    ]


def guided(call, model, classifier, scale=SCALE, label="0,3"):
    return call("ClassifierGuidance", model=model, classifier=classifier, label=label, scale=scale)[
        0
    ]


def sigmas_of(call, model, respacing="ddim25", denoise=1.0):
    return call("ADMScheduler", model=model, respacing=respacing, denoise=denoise)[0]


def library_run(files, x, scale, method, name="unconditional", cfg=1.0, labels=None, **options):
    model = load_adm(files["diffusion_models"] / f"{name}.safetensors")
    classifier = load_classifier(files["classifiers"] / "attention.safetensors")
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps("ddim25"))
    guides = [Guide(classifier, torch.tensor(LABELS), scale)] if scale else []
    return sample(model, x, steps, method=method, guides=guides, cfg=cfg, labels=labels, **options)


def start_of(sigmas, noise):
    """What ComfyUI starts from, sigma * noise, in VP coordinates."""
    sigma = sigmas[0]
    return noise * sigma / (1 + sigma**2).sqrt()


def report(name, got, expected):
    difference = (got - expected).abs().max().item()
    print(f"{name}: max abs difference {difference:.2e} of {expected.abs().max().item():.2f}")
    return difference


@pytest.mark.parametrize("sampler", ["euler", "ddim", "SamplerADM"])
def test_guided_ddim_equals_the_library(call, load, files, sampler):
    model, classifier = load()
    sigmas = sigmas_of(call, model)
    if sampler == "SamplerADM":
        (chosen,) = call("SamplerADM", method="ddim", eta=0.0)
    else:
        chosen = sampler_named(sampler)
    guider = guider_of(call, guided(call, model, classifier))
    got = with_guider(guider, chosen, sigmas)
    expected = library_run(files, start_of(sigmas, noise()), SCALE, "ddim")
    assert report(sampler, got, expected) < 1e-3
    unguided = library_run(files, start_of(sigmas, noise()), 0.0, "ddim")
    assert (expected - unguided).abs().max() > 0.05


@pytest.mark.parametrize("cfg", [0.0, 1.0, 3.0])
def test_cfg_and_classifier_together_equal_the_library(call, load, files, cfg):
    model, classifier = load("conditional")
    sigmas = sigmas_of(call, model)
    guider = guider_of(call, guided(call, model, classifier), "1,2", "", cfg)
    got = with_guider(guider, sampler_named("euler"), sigmas)
    expected = library_run(
        files,
        start_of(sigmas, noise()),
        SCALE,
        "ddim",
        "conditional",
        cfg,
        torch.tensor([1, 2]),
    )
    assert report(f"cfg {cfg}", got, expected) < 1e-3


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_sampler_adm_equals_the_library(call, load, files, method):
    """Algorithm 1 with the learned variance, and DDIM with noise, from the same draws."""
    import comfy.k_diffusion.sampling as k_sampling

    eta = 0.0 if method == "ddpm" else 0.8
    model, classifier = load()
    sigmas = sigmas_of(call, model)
    (sampler,) = call("SamplerADM", method=method, eta=eta)
    got = with_guider(guider_of(call, guided(call, model, classifier)), sampler, sigmas)
    draw = k_sampling.default_noise_sampler(noise(), seed=SEED)
    expected = library_run(
        files, start_of(sigmas, noise()), SCALE, method, eta=eta, noise=lambda x: draw(None, None)
    )
    assert report(method, got, expected) < 1e-3


def test_scale_zero_is_bit_identical(call, load):
    model, classifier = load()
    sigmas = sigmas_of(call, model)
    plain = with_guider(guider_of(call, model), sampler_named("euler"), sigmas)
    zero = guided(call, model, classifier, scale=0.0)
    assert torch.equal(with_guider(guider_of(call, zero), sampler_named("euler"), sigmas), plain)


def test_two_nodes_add_up(call, load):
    model, classifier = load()
    sigmas = sigmas_of(call, model)
    once = guided(call, model, classifier, scale=30.0)
    twice = guided(call, guided(call, model, classifier, scale=10.0), classifier, scale=20.0)
    a, b = (with_guider(guider_of(call, m), sampler_named("euler"), sigmas) for m in (once, twice))
    assert report("two nodes", b, a) < 1e-4


def test_unloaded_and_loaded_again_gives_the_same_image(call, load):
    import comfy.model_management

    model, classifier = load()
    sigmas = sigmas_of(call, model)
    steered = guided(call, model, classifier)
    first = with_guider(guider_of(call, steered), sampler_named("euler"), sigmas)
    with torch.inference_mode():
        comfy.model_management.unload_all_models()
        # a device that is not the CPU would hand back tensors made in inference mode
        for parameter in classifier.patcher.model.parameters():
            parameter.data = parameter.data.clone()
    assert any(p.is_inference() for p in classifier.patcher.model.parameters())
    again = with_guider(guider_of(call, steered), sampler_named("euler"), sigmas)
    assert torch.equal(first, again)


def test_cfg_of_the_guider_is_cores(call, load):
    """The guider is core's own CFG, bit for bit."""
    import comfy.samplers

    model, _ = load("conditional")
    sigmas = sigmas_of(call, model)
    (positive,) = call("ADMClassLabel", model=model, label="2")
    (negative,) = call("ADMClassLabel", model=model, label="")
    core = comfy.samplers.CFGGuider(model)
    core.set_conds(positive, negative)
    core.set_cfg(3.5)
    ours = call(
        "ClassifierFreeGuidance", model=model, positive=positive, negative=negative, cfg=3.5
    )
    a, b = (with_guider(g, sampler_named("euler"), sigmas) for g in (core, ours[0]))
    assert torch.equal(a, b)


def test_images_of_the_core_ksampler_path(call, load):
    """common_ksampler with an EmptyLatentImage (4 channels, an eighth of the size) just works."""
    import nodes

    model, _ = load()
    (conditioning,) = call("ADMClassLabel", model=model, label="")
    with torch.inference_mode():
        latent = nodes.EmptyLatentImage().generate(SIZE * 2, SIZE * 2, 2)[0]
        (out,) = nodes.common_ksampler(
            model,
            5,
            4,
            1.0,
            "euler",
            "normal",
            conditioning,
            conditioning,
            latent,
        )
    assert out["samples"].shape == (2, 3, SIZE * 2, SIZE * 2)


def test_classify_image_names_the_classes(call, load):
    _, classifier = load()
    images = (noise().movedim(1, -1) + 1) / 2
    (text,) = call("ClassifyImage", classifier=classifier, image=images, top_k=2)
    lines = text.splitlines()
    assert len(lines) == 2
    probs = classifier.on_device().log_probs(noise(), 0.0).exp()
    best = probs.argmax(dim=1).tolist()
    assert lines[0].startswith(f"1: {best[0]} {100 * probs[0].max():.1f} %")
    assert len(lines[0].split(",")) == 2
    assert CLASSES > 2


@pytest.mark.parametrize("every, asked", [(1, 8), (2, 4), (3, 3)])
def test_the_classifier_is_asked_every_so_often(
    call, wiring, unconditional, load_classifier, every, asked
):
    classifier = load_classifier()
    network, calls = classifier.classifier.network, []
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    inputs = {"classifier": classifier, "label": "1,2", "scale": 30.0}
    (model,) = call("ClassifierGuidance", model=unconditional, every=every, **inputs)
    sigmas = few_sigmas(model, 8)
    try:
        drawn = [
            with_guider(wiring.guider("basic", model), sampler_named("euler"), sigmas)
            for _ in range(2)
        ]
    finally:
        hook.remove()
    assert len(calls) == 2 * asked
    assert torch.equal(*drawn)  # each run begins anew
    (plain,) = call("ClassifierGuidance", model=unconditional, **inputs)
    plain = with_guider(wiring.guider("basic", plain), sampler_named("euler"), sigmas)
    assert torch.equal(plain, drawn[0]) == (every == 1)
