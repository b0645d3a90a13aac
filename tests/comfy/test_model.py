"""Load ADM Model's MODEL among core's own nodes, and Classifier Guidance on other models."""

from __future__ import annotations

import os

import pytest
import torch
from sampler_runs import drawn, few_sigmas, noise, picture
from tiny_models import (
    SIZE,
    write_classifier,
    write_released_classifier,
    write_released_unet,
    write_unet,
)

SCALE = 100.0  # a random classifier's gradients are small


@pytest.fixture(scope="module", autouse=True)
def more_files(files):
    """Files of other kinds beside the ones that all tests share."""
    write_unet(files["diffusion_models"] / "half.safetensors", classes=None, dtype="fp16")
    write_released_unet(files["diffusion_models"] / "released.pt")
    write_classifier(files["classifiers"] / "half.safetensors", pool="adaptive", dtype="fp16")
    write_classifier(files["classifiers"] / "latents.safetensors", pool="adaptive", channels=4)
    write_released_classifier(files["classifiers"] / "released.pt")


@pytest.fixture
def sampled(wiring):
    """A short run without classes."""
    return lambda model, **start: drawn(wiring.guider("basic", model), few_sigmas(model), **start)


def test_previews_show_the_picture(load_model):
    """latent2rgb knows the model's latent format, and red is red in it."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    model, _ = load_model()
    before, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        callback_of = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    finally:
        args.preview_method = before
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    kind, image, _ = callback_of.decode_latent_to_preview_image("JPEG", red)
    assert image.size == (SIZE, SIZE)
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_vae_is_pixel_space(load_model):
    _, vae = load_model()
    with torch.inference_mode():
        ends = torch.stack([torch.full((3, SIZE, SIZE), value) for value in (-1.0, 0.0, 1.0, 3.0)])
        images = vae.decode(ends)
        assert images.shape == (4, SIZE, SIZE, 3)
        for image, expected in zip(images, (0.0, 0.5, 1.0, 1.0), strict=True):
            assert torch.equal(image, torch.full_like(image, expected))
        latent = picture()
        assert torch.allclose(vae.encode(vae.decode(latent)), latent, atol=1e-6)


def test_noise_schedule_override_changes_sigmas(call, load_model):
    def sigmas(schedule):
        model = load_model(noise_schedule=schedule)[0]
        return call("ADMScheduler", model=model, respacing="10", denoise=1.0)[0]

    assert torch.equal(sigmas("auto"), sigmas("linear"))  # what the file says
    # the ends of both schedules (Nichol & Dhariwal 2021)
    assert sigmas("linear")[0] == pytest.approx(157.4, rel=1e-3)
    assert sigmas("cosine")[0] == pytest.approx(20291, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_dtypes_run(load_model, load_classifier, steered, sampled, dtype):
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    (model, _), (exact, _) = (load_model(dtype=one) for one in (name, "fp32"))
    classifier = load_classifier(dtype=name)
    for network in (model.model.diffusion_model, classifier.patcher.model):
        assert {weight.dtype for weight in network.parameters()} == {dtype}
    plain, expected = sampled(model), sampled(exact)
    assert (plain - expected).abs().mean() < 0.05
    assert torch.equal(plain, expected) == (dtype == torch.float32)
    guided = sampled(steered(model, classifier, scale=SCALE))
    assert torch.isfinite(guided).all() and not torch.equal(guided, plain)


def test_half_files_run_in_fp32_on_the_cpu(load_model, load_classifier, steered, sampled):
    """auto keeps the weights as they are stored; the CPU casts them when it uses them."""
    model, classifier = load_model("half.safetensors")[0], load_classifier("half.safetensors")
    for network in (model.model.diffusion_model, classifier.patcher.model):
        assert {weight.dtype for weight in network.parameters()} == {torch.float16}
    assert model.model.get_dtype_inference() == torch.float32
    assert torch.isfinite(sampled(steered(model, classifier, scale=SCALE))).all()
    # the same weights, rounded
    assert (sampled(model) - sampled(load_model()[0])).abs().max() < 0.02


def test_released_files_without_a_description(load_model, load_classifier, steered, sampled):
    """A bare state dict, as OpenAI's .pt: both layouts are found in the tensors."""
    model, classifier = load_model("released.pt")[0], load_classifier("released.pt")
    assert model.model.layout.num_classes is None
    assert classifier.classifier.num_classes == 4
    start = noise(1, 32)
    guided = sampled(steered(model, classifier, "1", SCALE), start=start)
    assert torch.isfinite(guided).all()
    assert not torch.equal(guided, sampled(model, start=start))


@pytest.mark.parametrize(
    "node, name, folder, write",
    [
        ("NoisyClassifierLoader", "classifier_name", "classifiers", write_classifier),
        ("ADMModelLoader", "model_name", "diffusion_models", write_unet),
    ],
)
def test_replaced_file_is_noticed(pack_nodes, files, node, name, folder, write):
    file = files[folder] / "replaced.safetensors"
    fingerprint = pack_nodes[node].fingerprint_inputs
    inputs = {name: file.name, "noise_schedule": "auto", "dtype": "auto"}
    missing = fingerprint(**inputs)
    write(file)
    first = fingerprint(**inputs)
    assert first == fingerprint(**inputs)
    before = file.stat()
    write(file, seed=7)  # as long as before, so only its time differs
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert file.stat().st_size == before.st_size
    assert len({missing, first, fingerprint(**inputs)}) == 3


def test_a_classifier_of_another_space_is_refused(core_model, load_classifier, load_model, steered):
    """By the node itself, before anything is sampled."""
    latents = load_classifier("latents.safetensors")
    for model, classifier, said in (
        (core_model(), load_classifier(), "any_size.safetensors.*3-channel.*4 channels"),
        (load_model()[0], latents, "latents.safetensors.*4-channel.*3 channels"),
    ):
        with pytest.raises(ValueError, match=said):
            steered(model, classifier)
    steered(core_model(), latents)


def test_class_label_for_another_model(label_of, core_model):
    with pytest.raises(ValueError, match="not an ADM model.*Load ADM Model"):
        label_of(core_model(), "1")
