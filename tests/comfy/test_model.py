"""Load ADM Model's MODEL among core's own nodes, and Classifier Guidance on other models."""

from __future__ import annotations

import json
import os

import pytest
import torch
from mixture_model import Mixture
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sampler_runs import few_sigmas, noise, picture, sampler_named, with_guider
from tiny_models import (
    SIZE,
    write_classifier,
    write_released_classifier,
    write_released_unet,
    write_unet,
)

from guidance.checkpoints.checkpoint import METADATA_KEY

SCALE = 100.0  # a random classifier's gradients are small
LABELS = [0, 3]


@pytest.fixture(scope="module", autouse=True)
def more_files(files):
    """Files of other kinds beside the ones that all tests share."""
    write_unet(files["diffusion_models"] / "half.safetensors", classes=None, dtype="fp16")
    write_released_unet(files["diffusion_models"] / "released.pt")
    write_classifier(files["classifiers"] / "half.safetensors", pool="adaptive", dtype="fp16")
    write_classifier(files["classifiers"] / "latents.safetensors", pool="adaptive", channels=4)
    write_released_classifier(files["classifiers"] / "released.pt")


@pytest.fixture
def guided(call, load_classifier):
    """The MODEL with Classifier Guidance."""

    def run(model, scale=SCALE, label="0,3"):
        return call(
            "ClassifierGuidance",
            model=model,
            classifier=load_classifier(),
            label=label,
            scale=scale,
        )[0]

    return run


@pytest.fixture
def conditionings(label_of):
    """(positive, negative) for a MODEL: classes against no class, or no classes at all."""

    def run(model, positive="1,2"):
        conditional = model.model.layout.num_classes is not None
        return label_of(model, positive if conditional else ""), label_of(model, "")

    return run


@pytest.fixture
def sampled(conditionings):
    """Core's KSampler; the samples."""
    import comfy.sample

    def run(
        model, sampler="euler", cfg=1.0, steps=4, denoise=1.0, latent=None, mask=None, conds=()
    ):
        latent = torch.zeros(2, 3, SIZE, SIZE) if latent is None else latent
        positive, negative = conds or conditionings(model)
        with torch.inference_mode():
            return comfy.sample.sample(
                model,
                noise(len(latent), latent.shape[-1]),
                steps,
                cfg,
                sampler,
                "normal",
                positive,
                negative,
                latent,
                denoise=denoise,
                noise_mask=mask,
                seed=5,
            )

    return run


def counted(module):
    """Grows by the batch of every forward pass of `module`."""
    batches = []
    module.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    return batches


# --- what the loader gives -------------------------------------------------------------------


def test_model_is_cores(load_model):
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sd

    model, vae = load_model()
    assert type(model) is comfy.model_patcher.ModelPatcher
    assert isinstance(model.model, comfy.model_base.BaseModel)
    assert model.model.model_type == comfy.model_base.ModelType.EPS
    assert isinstance(vae, comfy.sd.VAE)


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


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dtypes_run(load_model, sampled, dtype):
    model, _ = load_model(dtype=dtype)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert model.model.get_dtype() == wanted
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {wanted}
    out, exact = sampled(model), sampled(load_model(dtype="fp32")[0])
    assert torch.isfinite(out).all()
    assert (out - exact).abs().mean() < 0.05
    assert torch.equal(out, exact) == (dtype == "fp32")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_classifier_dtypes_run(call, load_model, load_classifier, sampled, dtype):
    classifier = load_classifier(dtype=dtype)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert {p.dtype for p in classifier.patcher.model.parameters()} == {wanted}
    model = load_model()[0]
    inputs = {"model": model, "classifier": classifier, "label": "0", "scale": SCALE}
    out = sampled(call("ClassifierGuidance", **inputs)[0])
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sampled(model))


def test_half_files_run_in_fp32_on_the_cpu(call, load_model, load_classifier, sampled):
    """auto keeps the weights as they are stored; the CPU casts them when it uses them."""
    model, classifier = load_model("half.safetensors")[0], load_classifier("half.safetensors")
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {torch.float16}
    assert model.model.get_dtype_inference() == torch.float32
    assert {p.dtype for p in classifier.patcher.model.parameters()} == {torch.float16}
    assert classifier.classifier.network.compute_dtype == torch.float32
    inputs = {"model": model, "classifier": classifier, "label": "0", "scale": SCALE}
    out = sampled(call("ClassifierGuidance", **inputs)[0])
    assert torch.isfinite(out).all()
    assert (
        sampled(model) - sampled(load_model()[0])
    ).abs().max() < 0.02  # the same weights, rounded


def test_released_files_without_a_description(call, load_model, load_classifier, sampled):
    """A bare state dict, as OpenAI's .pt: both layouts are found in the tensors."""
    model, classifier = load_model("released.pt")[0], load_classifier("released.pt")
    assert model.model.layout.num_classes is None
    assert classifier.classifier.num_classes == 4
    inputs = {"model": model, "classifier": classifier, "label": "1", "scale": SCALE}
    latent = torch.zeros(1, 3, 32, 32)
    out, plain = (
        sampled(m, latent=latent) for m in (call("ClassifierGuidance", **inputs)[0], model)
    )
    assert torch.isfinite(out).all()
    assert not torch.equal(out, plain)


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
    write(file, seed=7)  # as long as before, so only its time tells
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert file.stat().st_size == before.st_size
    assert len({missing, first, fingerprint(**inputs)}) == 3


# --- what Classifier Guidance leaves as it was ------------------------------------------------


def test_clones_keep_guidance(load_model, guided, sampled):
    model, _ = load_model()
    steered = guided(model)
    assert torch.equal(sampled(steered.clone()), sampled(steered))
    assert not torch.equal(sampled(steered.clone()), sampled(model))
    # and the loaded MODEL itself stays as it was
    assert not model.wrappers and not model.additional_models


# --- what a run costs ------------------------------------------------------------------------


@pytest.mark.parametrize("cfg, passes", [(1.0, 1), (3.0, 2)])
def test_network_passes(load_model, guided, sampled, cfg, passes):
    model, _ = load_model("conditional.safetensors")
    seen = counted(model.model.diffusion_model)
    sampled(guided(model), cfg=cfg, steps=4)
    assert sum(seen) == 4 * passes * 2  # images, in batches of two


@pytest.mark.parametrize("scale, passes", [(1.0, 4), (0.0, 0)])
def test_classifier_passes(call, load_model, load_classifier, sampled, scale, passes):
    model, classifier = load_model()[0], load_classifier()
    seen = counted(classifier.patcher.model)
    inputs = {"model": model, "classifier": classifier, "label": "0", "scale": scale}
    sampled(call("ClassifierGuidance", **inputs)[0], steps=4)
    assert seen == [2] * passes


# --- other models ----------------------------------------------------------------------------


def test_classifier_of_another_space_is_said_at_once(call, core_model, load_classifier, load_model):
    """By the node itself, before anything is sampled."""
    for model, classifier, parts in (
        (core_model(), load_classifier(), ("any_size.safetensors", "3-channel", "4 channels")),
        (
            load_model()[0],
            load_classifier("latents.safetensors"),
            ("latents.", "4-channel", "3 channels"),
        ),
    ):
        with pytest.raises(ValueError) as error:
            call("ClassifierGuidance", model=model, classifier=classifier, label="0", scale=1.0)
        assert all(part in str(error.value) for part in parts), error.value
    fitting = load_classifier("latents.safetensors")
    call("ClassifierGuidance", model=core_model(), classifier=fitting, label="0", scale=1.0)


def test_class_label_for_another_model(call, core_model):
    with pytest.raises(ValueError, match="not an ADM model.*Load ADM Model"):
        call("ADMClassLabel", model=core_model(), label="1")


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_sampler_adm_on_a_flow_model(call, core_model, method):
    import comfy.samplers

    model = core_model("FLOW")
    guider = comfy.samplers.CFGGuider(model)
    nothing = [[torch.zeros(1, 1, 1), {}]]
    guider.set_conds(nothing, nothing)
    (sampler,) = call("SamplerADM", method=method, eta=0.0)
    start = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    with pytest.raises(
        ValueError, match=r"ADM Sampler .* flow model; use a core sampler \(euler\)"
    ):
        with_guider(guider, sampler, sigmas, torch.zeros_like(start), start=start)


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize("values", [[0.0, 1.0, 3.0], [3.0, 3.0, 0.0]], ids=["flipped", "repeated"])
def test_sampler_adm_with_sigmas_that_do_not_fall(call, load_model, conditionings, method, values):
    model, _ = load_model()
    positive, negative = conditionings(model)
    (guider,) = call(
        "ClassifierFreeGuidance", model=model, positive=positive, negative=negative, cfg=1.0
    )
    (sampler,) = call("SamplerADM", method=method, eta=1.0)
    said = f"sigmas go from {values[0]:.5g} to {values[1]:.5g} in step 1.*ADM Scheduler"
    with pytest.raises(ValueError, match=said):
        with_guider(guider, sampler, torch.tensor(values))


def test_classify_image_leaves_alpha_out(call, load_classifier):
    image = torch.rand(1, SIZE, SIZE, 4, generator=torch.Generator().manual_seed(0))
    classifier = load_classifier()
    with_alpha, without = (
        call("ClassifyImage", classifier=classifier, image=x, top_k=4)
        for x in (image, image[..., :3])
    )
    assert with_alpha == without


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "EDM", "FLOW"])
def test_classifier_guides_other_models(call, core_model, place_classifier, kind):
    """4-channel latents with a classifier of them, in all kinds of coordinates."""
    import comfy.samplers

    model, mixture = core_model(kind), Mixture(shape=(4, SIZE, SIZE))
    inputs = {"classifier": place_classifier(mixture), "label": "0,3", "scale": 1.0}
    nothing = [[torch.zeros(1, 1, 1), {}]]
    start = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(3))

    def opinion(m):
        guider = comfy.samplers.CFGGuider(m)
        guider.set_conds(nothing, nothing)
        guider.set_cfg(1.0)
        out = with_guider(guider, sampler_named("euler"), few_sigmas(m, 8), start=start)
        assert torch.isfinite(out).all()
        with torch.no_grad():
            logits = mixture.logits(model.model.process_latent_in(out), torch.zeros(2))
        return logits.log_softmax(dim=1)[[0, 1], LABELS]

    plain, steered = opinion(model), opinion(call("ClassifierGuidance", model=model, **inputs)[0])
    assert (steered > plain + 1).all()


def test_a_description_of_a_far_too_large_network_is_refused_at_once(files, load_model):
    """Before a layer of it is built: that would take the machine's memory."""
    path = files["diffusion_models"] / "boastful.safetensors"
    write_unet(path, classes=None)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    about["layout"]["num_res_blocks"] = 10**9
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(about)})
    with pytest.raises(ValueError, match=r"boastful\.safetensors describes a network that cannot"):
        load_model(path.name)
