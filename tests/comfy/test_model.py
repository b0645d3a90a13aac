"""Load ADM Model's MODEL among core's own nodes: previews, masks, guiders, patches, samplers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_models import (
    SIZE,
    write_classifier,
    write_released_classifier,
    write_released_unet,
    write_unet,
)

SCALE = 100.0  # a random classifier's gradients are small
LABELS = [0, 3]
CLASSES_OF = {"plain": "", "dropout": "1,2"}


@pytest.fixture(scope="module")
def files(pack_nodes):
    """Small models where the loaders look for them."""
    import folder_paths

    models = Path(folder_paths.models_dir)
    folder = {kind: models / kind for kind in ("classifiers", "diffusion_models")}
    for path in folder.values():
        path.mkdir(parents=True, exist_ok=True)
    write_unet(folder["diffusion_models"] / "plain.safetensors", classes=None)
    write_unet(folder["diffusion_models"] / "dropout.safetensors")
    write_unet(folder["diffusion_models"] / "half.safetensors", classes=None, dtype="fp16")
    write_released_unet(folder["diffusion_models"] / "released.pt")
    write_classifier(folder["classifiers"] / "any_size.safetensors", pool="adaptive")
    write_classifier(folder["classifiers"] / "half.safetensors", pool="adaptive", dtype="fp16")
    write_classifier(folder["classifiers"] / "latents.safetensors", pool="adaptive", channels=4)
    write_released_classifier(folder["classifiers"] / "released.pt")
    return folder


@pytest.fixture
def call(pack_nodes, files):
    """Runs a node as the executor does: by keyword, in inference mode."""

    def run(node_id, **inputs):
        with torch.inference_mode():
            return pack_nodes[node_id].execute(**inputs).result

    return run


@pytest.fixture
def load(call):
    """(MODEL, VAE) of a small model file."""

    def run(name="plain.safetensors", noise_schedule="auto", dtype="auto"):
        return call(
            "ADMModelLoader",
            model_name=name,
            noise_schedule=noise_schedule,
            clip_denoised=True,
            dtype=dtype,
        )

    return run


@pytest.fixture
def load_classifier(call):
    """A NOISY_CLASSIFIER of a small classifier file."""

    def run(name="any_size.safetensors", noise_schedule="auto", dtype="auto"):
        return call(
            "NoisyClassifierLoader",
            classifier_name=name,
            noise_schedule=noise_schedule,
            dtype=dtype,
        )[0]

    return run


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
def label_of(call):
    """The CONDITIONING of a label."""
    return lambda model, label: call("ADMClassLabel", model=model, label=label)[0]


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


def noise(batch=2, size=SIZE):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def picture(batch=2):
    """A latent that a model would not draw by itself."""
    return torch.linspace(-0.9, 0.9, SIZE).expand(batch, 3, SIZE, SIZE).contiguous()


def with_guider(guider, sampler, sigmas, latent=None, mask=None, start=None):
    """As SamplerCustomAdvanced does."""
    latent = torch.zeros(2, 3, SIZE, SIZE) if latent is None else latent
    start = noise(len(latent)) if start is None else start
    with torch.inference_mode():
        return guider.sample(start, latent, sampler, sigmas, denoise_mask=mask, seed=11)


def core(module, name):
    """A core node; skips where this ComfyUI has none of that name."""
    found = getattr(pytest.importorskip(f"comfy_extras.{module}"), name, None)
    if found is None:
        pytest.skip(f"this ComfyUI has no {name}")
    return found


def sampler_named(name):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def counted(module):
    """Grows by the batch of every forward pass of `module`."""
    batches = []
    module.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    return batches


# --- what the loader gives -------------------------------------------------------------------


def test_model_is_cores(load):
    import comfy.model_base
    import comfy.model_patcher
    import comfy.sd

    model, vae = load()
    assert type(model) is comfy.model_patcher.ModelPatcher
    assert isinstance(model.model, comfy.model_base.BaseModel)
    assert model.model.model_type == comfy.model_base.ModelType.EPS
    assert isinstance(vae, comfy.sd.VAE)


def test_previews_show_the_picture(load):
    """latent2rgb knows the model's latent format, and red is red in it."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    model, _ = load()
    before, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        callback_of = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    finally:
        args.preview_method = before
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    kind, image, _ = callback_of.decode_latent_to_preview_image("JPEG", red)
    assert image.size == (SIZE, SIZE)
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_vae_is_pixel_space(load):
    _, vae = load()
    with torch.inference_mode():
        ends = torch.stack([torch.full((3, SIZE, SIZE), value) for value in (-1.0, 0.0, 1.0, 3.0)])
        images = vae.decode(ends)
        assert images.shape == (4, SIZE, SIZE, 3)
        for image, expected in zip(images, (0.0, 0.5, 1.0, 1.0), strict=True):
            assert torch.equal(image, torch.full_like(image, expected))
        latent = picture()
        assert torch.allclose(vae.encode(vae.decode(latent)), latent, atol=1e-6)


def test_noise_schedule_override_changes_sigmas(call, load):
    def sigmas(schedule):
        model = load(noise_schedule=schedule)[0]
        return call("ADMScheduler", model=model, respacing="10", denoise=1.0)[0]

    assert torch.equal(sigmas("auto"), sigmas("linear"))  # what the file says
    # the ends of both schedules (Nichol & Dhariwal 2021)
    assert sigmas("linear")[0] == pytest.approx(157.4, rel=1e-3)
    assert sigmas("cosine")[0] == pytest.approx(20291, rel=1e-3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dtypes_run(load, sampled, dtype):
    model, _ = load(dtype=dtype)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert model.model.get_dtype() == wanted
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {wanted}
    out, exact = sampled(model), sampled(load(dtype="fp32")[0])
    assert torch.isfinite(out).all()
    assert (out - exact).abs().mean() < 0.05
    assert torch.equal(out, exact) == (dtype == "fp32")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_classifier_dtypes_run(call, load, load_classifier, sampled, dtype):
    classifier = load_classifier(dtype=dtype)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert {p.dtype for p in classifier.patcher.model.parameters()} == {wanted}
    model = load()[0]
    inputs = {"model": model, "classifier": classifier, "label": "0", "scale": SCALE}
    out = sampled(call("ClassifierGuidance", **inputs)[0])
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sampled(model))


def test_half_files_run_in_fp32_on_the_cpu(call, load, load_classifier, sampled):
    """auto takes the file's own precision only where the device is fast in it."""
    model, classifier = load("half.safetensors")[0], load_classifier("half.safetensors")
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {torch.float32}
    assert {p.dtype for p in classifier.patcher.model.parameters()} == {torch.float32}
    inputs = {"model": model, "classifier": classifier, "label": "0", "scale": SCALE}
    out = sampled(call("ClassifierGuidance", **inputs)[0])
    assert torch.isfinite(out).all()
    assert (sampled(model) - sampled(load()[0])).abs().max() < 0.02  # the same weights, rounded


def test_released_files_without_a_description(call, load, load_classifier, sampled):
    """A bare state dict, as OpenAI's .pt: both layouts are found in the tensors."""
    model, classifier = load("released.pt")[0], load_classifier("released.pt")
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


# --- runs that start from something ----------------------------------------------------------


def masked_middle():
    """1 where the model may draw: a square in the middle."""
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 4:12, 4:12] = 1
    return mask


@pytest.mark.parametrize(
    "sampler", ["euler", "dpmpp_2m_sde", "ddpm of the pack", "ddim of the pack"]
)
def test_inpainting_keeps_what_is_masked_out(call, load, guided, conditionings, sampler):
    """Also with a scale that pushes hard, at the last step as well."""
    model = guided(load()[0], scale=3000.0)
    if sampler.endswith("pack"):
        (chosen,) = call("SamplerADM", method=sampler[:4], eta=0.0)
    else:
        chosen = sampler_named(sampler)
    positive, negative = conditionings(model)
    (guider,) = call(
        "ClassifierFreeGuidance", model=model, positive=positive, negative=negative, cfg=1.0
    )
    (sigmas,) = call("ADMScheduler", model=model, respacing="8", denoise=1.0)
    mask, given = masked_middle(), picture()
    out = with_guider(guider, chosen, sigmas, given, mask)
    kept = mask.expand_as(out) == 0
    assert (out - given)[kept].abs().max() < 1e-5
    assert (out - given)[~kept].abs().mean() > 0.1


def test_image_to_image(load, guided, sampled):
    """Half of the noise leaves more of the given picture than all of it."""
    model, given = guided(load()[0]), picture()
    half = sampled(model, latent=given, denoise=0.5, steps=6)
    whole = sampled(model, latent=given, steps=6)
    assert torch.isfinite(half).all()
    assert (half - given).abs().mean() < 0.9 * (whole - given).abs().mean()
    # and the class is followed in it, too
    assert not torch.equal(half, sampled(load()[0], latent=given, denoise=0.5, steps=6))


@pytest.mark.parametrize("sampler", ["euler", "ddim of the pack", "ddpm of the pack"])
def test_split_sigmas_go_on_where_the_first_run_ended(call, load, guided, conditionings, sampler):
    """Two runs draw what one draws; ddpm's second run draws the same noise again, so only ddim."""
    split = core("nodes_custom_sampler", "SplitSigmas")
    model = guided(load()[0])
    chosen = sampler_named("euler")
    if sampler.endswith("pack"):
        (chosen,) = call("SamplerADM", method=sampler[:4], eta=0.0)
    positive, negative = conditionings(model)
    (guider,) = call(
        "ClassifierFreeGuidance", model=model, positive=positive, negative=negative, cfg=1.0
    )
    (sigmas,) = call("ADMScheduler", model=model, respacing="8", denoise=1.0)
    high, low = split.execute(sigmas=sigmas, step=4).result
    first = with_guider(guider, chosen, high)
    second = with_guider(guider, chosen, low, first, start=torch.zeros_like(first))
    assert torch.isfinite(second).all()
    if not sampler.startswith("ddpm"):
        assert (second - with_guider(guider, chosen, sigmas)).abs().max() < 1e-4
    # splitting after the last step leaves a run without steps
    end = split.execute(sigmas=sigmas, step=8).result[1]
    assert len(end) == 1
    unchanged = with_guider(guider, chosen, end, second, start=torch.zeros_like(second))
    assert torch.allclose(unchanged, second)


# --- guidance among core's patches -----------------------------------------------------------


def test_clones_keep_guidance(load, guided, sampled):
    model, _ = load()
    steered = guided(model)
    assert torch.equal(sampled(steered.clone()), sampled(steered))
    assert not torch.equal(sampled(steered.clone()), sampled(model))
    # and the loaded MODEL itself stays as it was
    assert not model.wrappers and not model.additional_models


@pytest.mark.parametrize(
    "module, name, options",
    [
        ("nodes_model_advanced", "RescaleCFG", {"multiplier": 0.7}),
        ("nodes_apg", "APG", {"eta": 0.0, "norm_threshold": 15.0, "momentum": -0.5}),
        ("nodes_cfg", "CFGZeroStar", {}),
        ("nodes_cfg", "CFGNorm", {"strength": 1.0}),
        ("nodes_tcfg", "TCFG", {}),
        (
            "nodes_custom_sampler",
            "CFGOverride",
            {"cfg": 1.0, "start_percent": 0.5, "end_percent": 1.0},
        ),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["patch first", "guidance first"])
def test_cfg_patches_compose(load, guided, sampled, module, name, options, first):
    """Each patch still changes the result, and so does guidance on top of it."""
    node = core(module, name)

    def patched(model):
        with torch.inference_mode():
            if hasattr(node, "execute"):
                return node.execute(model=model, **options).result[0]
            return getattr(node(), node.FUNCTION)(model=model, **options)[0]

    model, _ = load("dropout.safetensors")
    both = guided(patched(model)) if first else patched(guided(model))
    out = sampled(both, cfg=4.0)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sampled(patched(model), cfg=4.0))
    assert not torch.equal(out, sampled(guided(model), cfg=4.0))


def test_perp_neg_guider(load, guided, label_of):
    node = core("nodes_perpneg", "PerpNegGuider")
    outs = []
    for model in (load("dropout.safetensors")[0], guided(load("dropout.safetensors")[0])):
        conds = [label_of(model, label) for label in ("1", "2", "")]
        (guider,) = node.execute(model, *conds, cfg=3.0, neg_scale=1.0).result
        outs.append(with_guider(guider, sampler_named("euler"), few_sigmas(model)))
    assert torch.isfinite(outs[1]).all()
    assert not torch.equal(*outs)


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg_guider(load, guided, label_of, style):
    node = core("nodes_custom_sampler", "DualCFGGuider")
    outs = []
    for model in (load("dropout.safetensors")[0], guided(load("dropout.safetensors")[0])):
        conds = [label_of(model, label) for label in ("1", "2", "")]
        (guider,) = node.execute(
            model, *conds, cfg_conds=3.0, cfg_cond2_negative=2.0, style=style
        ).result
        outs.append(with_guider(guider, sampler_named("euler"), few_sigmas(model)))
    assert torch.isfinite(outs[1]).all()
    assert not torch.equal(*outs)


def test_dual_model_guider(load, guided, label_of):
    """A conditional model against an unconditional one; the label is of the first."""
    node = core("nodes_custom_sampler", "DualModelGuider")
    outs = []
    for model in (load("dropout.safetensors")[0], guided(load("dropout.safetensors")[0])):
        (guider,) = node.execute(
            model,
            label_of(model, "1"),
            cfg=3.0,
            model_negative=load()[0],
            negative=label_of(model, ""),
        ).result
        outs.append(with_guider(guider, sampler_named("euler"), few_sigmas(model)))
    assert torch.isfinite(outs[1]).all()
    assert not torch.equal(*outs)


def few_sigmas(model, steps=4):
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, "normal", steps)


@pytest.mark.parametrize(
    "name",
    [
        "euler_ancestral",
        "dpmpp_sde",
        "dpmpp_3m_sde",
        "dpm_adaptive",
        "euler_cfg_pp",
        "uni_pc",
        "lcm",
    ],
)
def test_samplers_give_finite_images(load, guided, sampled, name):
    model, _ = load("dropout.safetensors")
    out = sampled(guided(model), sampler=name, cfg=2.0)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, sampled(model, sampler=name, cfg=2.0))


def test_regional_conditioning(load, guided, sampled, label_of):
    """Each half has a class of its own: the halves differ from what one class draws there."""
    import nodes

    model = guided(load("dropout.safetensors")[0])
    halves = []
    for label, x in (("1", 0), ("3", SIZE // 2)):
        # the node counts in eighths of a pixel, as for latents
        (region,) = nodes.ConditioningSetArea().append(
            label_of(model, label), 8 * SIZE // 2, 8 * SIZE, 8 * x, 0, 1.0
        )
        halves += region
    nothing = label_of(model, "")
    out = sampled(model, conds=(halves, nothing), cfg=3.0)
    swapped = [[halves[0][0], halves[0][1] | {"adm_labels": [3]}], halves[1]]
    other = sampled(model, conds=(swapped, nothing), cfg=3.0)
    assert torch.isfinite(out).all()
    left, right = ((out - other)[..., part].abs().mean() for part in (slice(8), slice(8, 16)))
    assert left > 2 * right


# --- what a run costs ------------------------------------------------------------------------


@pytest.mark.parametrize("cfg, passes", [(1.0, 1), (3.0, 2)])
def test_network_passes(load, guided, sampled, cfg, passes):
    model, _ = load("dropout.safetensors")
    seen = counted(model.model.diffusion_model)
    sampled(guided(model), cfg=cfg, steps=4)
    assert sum(seen) == 4 * passes * 2  # images, in batches of two


@pytest.mark.parametrize("scale, passes", [(1.0, 4), (0.0, 0)])
def test_classifier_passes(call, load, load_classifier, sampled, scale, passes):
    model, classifier = load()[0], load_classifier()
    seen = counted(classifier.patcher.model)
    inputs = {"model": model, "classifier": classifier, "label": "0", "scale": scale}
    sampled(call("ClassifierGuidance", **inputs)[0], steps=4)
    assert seen == [2] * passes


# --- other models ----------------------------------------------------------------------------


class Small(torch.nn.Module):
    """A network as ComfyUI calls it."""

    def __init__(self, channels=4, dtype=None, device=None, operations=None):
        super().__init__()
        self.dtype = dtype or torch.float32
        self.layer = operations.Conv2d(channels, channels, 1, dtype=dtype, device=device)

    def forward(self, x, timesteps, **_):
        return self.layer(x)


@pytest.fixture
def other_model(comfy):
    """A core MODEL that is no ADM model: 4-channel latents by default, eps or flow."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    def make(kind="EPS", latent_format=comfy.latent_formats.SD15):
        class Config(comfy.supported_models_base.BASE):
            unet_extra_config = {}

        Config.latent_format = latent_format
        config = Config({"channels": latent_format.latent_channels})
        config.set_inference_dtype(torch.float32, None)
        config.sampling_settings = {}
        model = comfy.model_base.BaseModel(
            config, getattr(comfy.model_base.ModelType, kind), unet_model=Small
        )
        torch.nn.init.normal_(model.diffusion_model.layer.weight, std=0.1)
        torch.nn.init.zeros_(model.diffusion_model.layer.bias)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)

    return make


def test_classifier_of_another_space_is_said_at_once(call, other_model, load_classifier, load):
    """By the node itself, before anything is sampled."""
    for model, classifier, parts in (
        (other_model(), load_classifier(), ("any_size.safetensors", "3-channel", "4 channels")),
        (
            load()[0],
            load_classifier("latents.safetensors"),
            ("latents.", "4-channel", "3 channels"),
        ),
    ):
        with pytest.raises(ValueError) as error:
            call("ClassifierGuidance", model=model, classifier=classifier, label="0", scale=1.0)
        assert all(part in str(error.value) for part in parts), error.value
    fitting = load_classifier("latents.safetensors")
    call("ClassifierGuidance", model=other_model(), classifier=fitting, label="0", scale=1.0)


def test_class_label_for_another_model(call, other_model):
    with pytest.raises(ValueError, match="not an ADM model.*Load ADM Model"):
        call("ADMClassLabel", model=other_model(), label="1")


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_sampler_adm_on_a_flow_model(call, other_model, method):
    import comfy.samplers

    model = other_model("FLOW")
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
def test_sampler_adm_with_sigmas_that_do_not_fall(call, load, conditionings, method, values):
    model, _ = load()
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


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "FLOW"])
def test_classifier_guides_other_models(call, other_model, load_classifier, kind):
    """4-channel latents with a 4-channel classifier, in all three kinds of coordinates."""
    import comfy.samplers

    model, classifier = other_model(kind), load_classifier("latents.safetensors")
    inputs = {"classifier": classifier, "label": "0,3", "scale": SCALE}
    nothing = [[torch.zeros(1, 1, 1), {}]]
    start = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(3))

    def opinion(m):
        guider = comfy.samplers.CFGGuider(m)
        guider.set_conds(nothing, nothing)
        guider.set_cfg(1.0)
        out = with_guider(
            guider, sampler_named("euler"), few_sigmas(m, 8), torch.zeros_like(start), start=start
        )
        assert torch.isfinite(out).all()
        latent = model.model.process_latent_in(out)
        return classifier.on_device().log_probs(latent, 0.0)[[0, 1], LABELS].sum()

    assert opinion(call("ClassifierGuidance", model=model, **inputs)[0]) > opinion(model)
