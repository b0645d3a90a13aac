"""ADM upsamplers in a real ComfyUI: the small image goes beside x_t, as in the library."""

from __future__ import annotations

import pytest
import torch
from library_runs import library_run, start_of
from sampler_runs import core_guider, differ, drawn, noise
from tiny_models import write_unet

LOW = 8
SIZE = 4 * LOW


@pytest.fixture
def upsampler(files, load_model):
    """A small upsampler, from a file."""
    path = files["diffusion_models"] / "upsampler.safetensors"
    write_unet(path, in_channels=6, image_size=SIZE)
    return load_model(path.name)[0]


def images(batch=2, side=LOW, channels=3):
    """What a VAEDecode gives: (B, H, W, C) in 0..1."""
    return torch.rand(batch, side, side, channels, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def conditioned(call, label_of):
    """The CONDITIONING of a label and a small image."""

    def run(model, image, label="1,2"):
        conditioning = label_of(model, label)
        return call("ADMUpscaleConditioning", conditioning=conditioning, image=image)[0]

    return run


@pytest.fixture
def sampled(adm_sigmas):
    """What the model draws in five steps."""
    return lambda model, positive, x, negative=None, cfg=1.0: drawn(
        core_guider(model, cfg, positive, negative), adm_sigmas("ddim5"), start=x
    )


START = noise(size=SIZE)


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_the_chain_equals_the_library(upsampler, conditioned, sampled, adm_sigmas, files, cfg):
    image = images()
    positive = conditioned(upsampler, image)
    negative = conditioned(upsampler, image, "")
    got = sampled(upsampler, positive, START, negative, cfg)
    expected = library_run(
        files["diffusion_models"] / "upsampler.safetensors",
        start_of(adm_sigmas("ddim5"), START),
        "ddim5",
        labels=torch.tensor([1, 2]),
        low_res=image.movedim(-1, 1) * 2 - 1,
        cfg=cfg,
    )
    assert differ(got, expected) < 1e-4
    other = sampled(upsampler, conditioned(upsampler, 1 - image), START)
    assert (other - got).abs().max() > 0.01


def test_each_image_of_the_batch_has_its_own_small_image(upsampler, conditioned, sampled):
    image, x = images(), START
    both = sampled(upsampler, conditioned(upsampler, image), x)
    for index, label in enumerate("12"):
        one = slice(index, index + 1)
        alone = sampled(upsampler, conditioned(upsampler, image[one], label), x[one])
        assert (both[one] - alone).abs().max() < 1e-5


def test_one_small_image_serves_the_batch_and_alpha_is_dropped(upsampler, conditioned, sampled):
    image, x = images(1, channels=4), START
    shared = sampled(upsampler, conditioned(upsampler, image), x)
    twice = image[..., :3].repeat(2, 1, 1, 1)
    assert torch.equal(shared, sampled(upsampler, conditioned(upsampler, twice), x))


def test_classifier_guidance_steers_an_upsampler_too(
    upsampler, conditioned, sampled, steered, load_classifier
):
    classifier = load_classifier()
    guided = steered(upsampler, classifier, "0,3", 1e6)
    conditioning = conditioned(upsampler, images())
    plain, towards = (sampled(m, conditioning, START) for m in (upsampler, guided))
    before, after = (
        classifier.on_device().log_probs(x, 0.0)[[0, 1], [0, 3]] for x in (plain, towards)
    )
    assert (after > before).all()


@pytest.mark.parametrize(
    ("name", "image", "label", "said"),
    [
        ("upsampler", None, "1", "upsampler.*small image"),
        ("upsampler", images(side=LOW + 2), "1", "10x10.*40x40.*32x32"),
        ("upsampler", images(3), "1", "3 low-res images.*batch of 2"),
        ("unconditional", images(), "", "noise alone"),
    ],
    ids=["no image", "wrong size", "wrong batch", "plain model"],
)
def test_small_images_that_do_not_fit(
    upsampler, unconditional, label_of, conditioned, sampled, name, image, label, said
):
    model = upsampler if name == "upsampler" else unconditional
    conditioning = label_of(model, label)
    if image is not None:
        conditioning = conditioned(model, image, label)
    with pytest.raises(ValueError, match=said):
        sampled(model, conditioning, START)
