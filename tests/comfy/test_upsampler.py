"""ADM upsamplers in a real ComfyUI: the small image goes beside x_t, as in the library."""

from __future__ import annotations

import pytest
import torch
from tiny_models import write_unet

from guidance import load_adm
from guidance.sampling.loop import chain, sample
from guidance.sampling.respacing import respaced_timesteps

LOW = 8
SIZE = 4 * LOW


@pytest.fixture
def node(call):
    """Runs a node of the pack; its first output."""
    return lambda node_id, **inputs: call(node_id, **inputs)[0]


@pytest.fixture
def upsampler(files, load_model):
    """A small upsampler, from a file."""
    path = files["diffusion_models"] / "upsampler.safetensors"
    write_unet(path, in_channels=6, image_size=SIZE)
    return load_model(path.name)[0]


def images(batch=2, side=LOW, channels=3):
    """What a VAEDecode gives: (B, H, W, C) in 0..1."""
    return torch.rand(batch, side, side, channels, generator=torch.Generator().manual_seed(4))


def noise(batch=2, side=SIZE):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(5))


def conditioned(node, model, image, label="1,2"):
    conditioning = node("ADMClassLabel", model=model, label=label)
    return node("ADMUpscaleConditioning", conditioning=conditioning, image=image)


def sampled(node, model, conditioning, x, negative=None, cfg=1.0):
    import comfy.samplers

    guider = node(
        "ClassifierFreeGuidance",
        model=model,
        positive=conditioning,
        negative=negative or conditioning,
        cfg=cfg,
    )
    sigmas = node("ADMScheduler", model=model, respacing="ddim5", denoise=1.0)
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(x, torch.zeros_like(x), sampler, sigmas, seed=1)


def library_run(files, x, low_res, labels, cfg=1.0):
    model = load_adm(files["diffusion_models"] / "upsampler.safetensors")
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps("ddim5"))
    sigma = ((1 - steps[0].alpha_bar) / steps[0].alpha_bar) ** 0.5
    x_t = x * sigma / (1 + sigma**2) ** 0.5
    return sample(model, x_t, steps, labels=labels, low_res=low_res, cfg=cfg)


def as_pixels(image):
    return image[..., :3].movedim(-1, 1) * 2 - 1


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_the_chain_equals_the_library(node, upsampler, files, cfg):
    image = images()
    positive = conditioned(node, upsampler, image)
    negative = conditioned(node, upsampler, image, "")
    got = sampled(node, upsampler, positive, noise(), negative, cfg)
    expected = library_run(files, noise(), as_pixels(image), torch.tensor([1, 2]), cfg)
    difference = (got - expected).abs().max().item()
    print(f"cfg {cfg}: {difference:.1e}")
    assert difference < 1e-4
    other = sampled(node, upsampler, conditioned(node, upsampler, 1 - image), noise())
    assert (other - got).abs().max() > 0.01


def test_each_image_of_the_batch_has_its_own_small_image(node, upsampler):
    image, x = images(), noise()
    both = sampled(node, upsampler, conditioned(node, upsampler, image), x)
    for index, label in enumerate("12"):
        one = slice(index, index + 1)
        alone = sampled(node, upsampler, conditioned(node, upsampler, image[one], label), x[one])
        assert (both[one] - alone).abs().max() < 1e-5


def test_one_small_image_serves_the_whole_batch_and_alpha_is_dropped(node, upsampler):
    image, x = images(1, channels=4), noise()
    shared = sampled(node, upsampler, conditioned(node, upsampler, image), x)
    twice = image[..., :3].repeat(2, 1, 1, 1)
    assert torch.equal(shared, sampled(node, upsampler, conditioned(node, upsampler, twice), x))


def test_classifier_guidance_steers_an_upsampler_too(node, upsampler, load_classifier):
    classifier = load_classifier("any_size.safetensors")
    steered = node(
        "ClassifierGuidance", model=upsampler, classifier=classifier, label="0,3", scale=1e6
    )
    conditioning = conditioned(node, upsampler, images())
    plain, guided = (sampled(node, m, conditioning, noise()) for m in (upsampler, steered))
    opinion = [classifier.on_device().log_probs(x, 0.0)[[0, 1], [0, 3]] for x in (plain, guided)]
    assert (opinion[1] > opinion[0]).all()


def test_an_upsampler_without_its_small_image(node, upsampler):
    conditioning = node("ADMClassLabel", model=upsampler, label="1")
    with pytest.raises(ValueError, match="is an upsampler and needs the small image"):
        sampled(node, upsampler, conditioning, noise())


def test_a_small_image_of_the_wrong_size(node, upsampler):
    conditioning = conditioned(node, upsampler, images(side=LOW + 2))
    with pytest.raises(ValueError, match=r"10x10.*40x40.*32x32"):
        sampled(node, upsampler, conditioning, noise())


def test_small_images_that_do_not_match_the_batch(node, upsampler):
    conditioning = conditioned(node, upsampler, images(3), "1")
    with pytest.raises(ValueError, match="3 low-res images for a batch of 2"):
        sampled(node, upsampler, conditioning, noise())


def test_a_plain_model_takes_no_small_image(node, load_model):
    (model, _) = load_model("unconditional.safetensors")
    conditioning = conditioned(node, model, images(), "")
    with pytest.raises(ValueError, match="draws from noise alone"):
        sampled(node, model, conditioning, noise())
