"""Load Image Classifier, and what it guides, in a real ComfyUI."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from library_runs import draws, guide, library_run, start_of
from sampler_runs import (
    core_guider,
    counted_calls,
    differ,
    drawn,
    evaluated,
    few_sigmas,
    noise,
)

from guidance import load_adm, load_classifier
from guidance.checkpoints.image_classifiers import load_image_classifier

JUDGE = "digits_judge.safetensors"
SIZE = 32
LABELS = [3, 8]


@pytest.fixture
def digits_model(load_model):
    """The demo MODEL, in fp32."""
    return load_model("digits_adm.safetensors", dtype="fp32")[0]


@pytest.fixture(scope="module")
def guided(steered):
    """The MODEL with Classifier Guidance towards LABELS."""
    return lambda model, classifier, scale=2.0, label="3,8", **options: steered(
        model, classifier, label, scale, **options
    )


@pytest.fixture
def at(label_of):
    """The denoised image of a MODEL at x and sigma, for a class, or for none."""

    def run(model, x, sigma, label="", cfg=1.0):
        guider = core_guider(model, cfg, label_of(model, label), label_of(model, ""))
        return evaluated(guider, x, sigma)

    return run


@pytest.fixture(scope="module")
def judge_path(files):
    """Where the demo judge is."""
    import folder_paths

    return folder_paths.get_full_path("classifiers", JUDGE)


def noisy_images(sigma):
    """x = sigma eps and something in the middle, (2, 3, 32, 32)."""
    x = torch.zeros(2, 3, SIZE, SIZE) - 1
    x[:, :, 8:24, 14:18] = 0.5
    return x + sigma * noise(2, SIZE)


def log_prob(judge_path, images):
    """log p(LABELS | images), without any of the pack's guidance."""
    logits = load_classifier(judge_path).network(images, torch.zeros(len(images)))
    return F.log_softmax(logits, dim=1)[torch.arange(2), torch.tensor(LABELS)].sum()


def denoised_by_hand(root, x, sigma, cfg):
    """D(x) of the demo model for class 5, or for none."""
    model = load_adm(root / "models" / "diffusion_models" / "digits_adm.safetensors")
    t = int((model.schedule.ratios - sigma).abs().argmin())
    t = torch.full((len(x),), float(t))

    def eps(label):
        return model(x / (1 + sigma**2) ** 0.5, t, torch.full((len(x),), label))[0]

    output = eps(10) if cfg is None else eps(10) + cfg * (eps(5) - eps(10))
    return (x - sigma * output).clamp(-1, 1)


def table_sigma(model, t):
    """The sigma of a timestep: between two of them core rounds."""
    return float(model.get_model_object("model_sampling").sigmas[t])


@pytest.mark.parametrize(("t", "cfg"), [(150, None), (500, None), (650, None), (500, 3.0)])
def test_exact_is_autograd_through_the_whole_chain(
    load_image, digits_model, guided, at, root, judge_path, t, cfg
):
    sigma, scale = table_sigma(digits_model, t), 2.0
    x, labels = noisy_images(sigma), () if cfg is None else ("5", cfg)
    plain = at(digits_model, x, sigma, *labels)
    term = at(guided(digits_model, load_image("exact"), scale), x, sigma, *labels) - plain
    x.requires_grad_()
    denoised = denoised_by_hand(root, x, sigma, cfg)
    (gradient,) = torch.autograd.grad(log_prob(judge_path, denoised), x)
    expected = scale * sigma**2 * gradient
    size = float(expected.abs().max())
    assert differ(plain, denoised) < 1e-5 * (cfg or 1.0)  # CFG enlarges rounding, too
    assert size > 1e-3
    assert differ(term, expected) < 1e-5 * max(1.0, size)


def test_cheap_is_the_classifiers_gradient_alone(load_image, digits_model, guided, at, judge_path):
    sigma, scale = table_sigma(digits_model, 500), 2.0
    x = noisy_images(sigma)
    plain = at(digits_model, x, sigma)
    towards = at(guided(digits_model, load_image(), scale), x, sigma)
    at_x0 = plain.clone().requires_grad_()
    (g,) = torch.autograd.grad(log_prob(judge_path, at_x0), at_x0)
    expected = scale * sigma**2 / (1 + sigma**2) * g
    assert expected.abs().max() > 1e-3
    assert differ(towards - plain, expected) < 1e-5


@pytest.mark.parametrize(
    "kinds",
    [
        ("exact", "exact"),
        ("exact", "cheap"),
        ("cheap", "exact"),
        ("exact", "noisy"),
        ("noisy", "exact"),
    ],
)
def test_two_in_a_row_add_up(load_image, load_classifier, digits_model, guided, at, kinds):
    """And all of them judge the model's own prediction, not one that was guided already."""
    sigma = table_sigma(digits_model, 500)
    x = noisy_images(sigma)
    row = [
        load_classifier("digits_classifier.safetensors", dtype="fp32")
        if kind == "noisy"
        else load_image(kind)
        for kind in kinds
    ]
    plain = at(digits_model, x, sigma)
    alone = [at(guided(digits_model, one), x, sigma) - plain for one in row]
    both = guided(guided(digits_model, row[0]), row[1])
    assert differ(at(both, x, sigma) - plain, sum(alone)) < 1e-5
    assert min(float(term.abs().max()) for term in alone) > 1e-2


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_runs_equal_the_librarys(
    adm_sigmas, sampler_of, load_image, files, unconditional, steered, judge_path, gradient, method
):
    """Both algorithms: ddpm takes the bare gradient of the guide."""
    sigmas, sampler = adm_sigmas("6"), sampler_of(f"{method} of the pack")
    model = steered(unconditional, load_image(gradient), "3,8", 3.0)
    got = drawn(core_guider(model), sigmas, sampler)
    clean = load_image_classifier(judge_path, gradient=gradient)

    def library(scale):
        guides = [guide(clean, LABELS, scale)]
        path = files["diffusion_models"] / "unconditional.safetensors"
        options = {"method": method, "guides": guides, "noise": draws()}
        return library_run(path, start_of(sigmas), "6", **options)

    assert differ(got, library(3.0)) < 1e-3
    assert differ(got, library(0.0)) > 0.01


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
def test_a_cached_gradient_when_the_batch_changes(
    load_image, digits_model, guided, label_of, gradient
):
    """Some samplers evaluate a part of the batch: no gradient of other images is used for it."""
    import comfy.samplers

    sigma = table_sigma(digits_model, 500)
    x = noisy_images(sigma)
    # only the third and the last have the shape of the one before, and come from the cache
    parts, computed = [x, x[:1], x[:1], x, x], [2, 1, 2]

    def run(interval):
        seen, classifier = [], load_image(gradient)
        calls = counted_calls(classifier.classifier.network)

        def some(model, begin, sigmas, extra_args=None, **_):
            for part in parts:
                seen.append(model(part, part.new_full((len(part),), sigma), **extra_args))
            return begin

        model = guided(digits_model, classifier, label="3", gradient_interval=interval)
        none = label_of(model, "")
        sampler = comfy.samplers.KSAMPLER(some)
        sigmas = torch.tensor([sigma, 0.0])
        drawn(core_guider(model, positive=none), sigmas, sampler, start=torch.zeros_like(x))
        return seen, calls

    cached, calls = run(interval=4)
    assert calls == computed
    for one, other in zip(cached, run(interval=1)[0], strict=True):
        assert differ(one, other) < 1e-5


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
def test_the_trace_sees_it(call, load_image, digits_model, guided, at, gradient):
    sigma = table_sigma(digits_model, 500)
    x = noisy_images(sigma)
    plain = at(digits_model, x, sigma)
    model, trace = call("GuidanceTrace", model=guided(digits_model, load_image(gradient)))
    term = at(model, x, sigma) - plain
    (record,) = trace.to_dict()["evaluations"][0]["classifiers"]
    assert record["scale"] == 2.0
    assert record["norm"] == pytest.approx(float(term.flatten(1).norm(dim=1).mean()), rel=1e-3)
    judge = load_image().on_device()
    expected = judge.image_log_probs(plain)[torch.arange(2), torch.tensor(LABELS)]
    assert record["log_probs"] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.fixture(scope="module")
def small_vae(comfy):
    """A real core VAE of 4-channel latents (TAESD), made as the loaders do: in inference mode."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    generator = torch.Generator().manual_seed(0)
    weights = TAESD(latent_channels=4).state_dict()
    for value in weights.values():  # core's layers leave them as the memory was
        value.copy_(0.06 * torch.randn(value.shape, generator=generator))
    weights["vae_scale"].fill_(1.0)
    with torch.inference_mode():
        return comfy.sd.VAE(sd=weights)


def latents(sigma):
    return sigma * torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_latents_are_decoded(core_model, small_vae, load_image, guided, judge_path, gradient, kind):
    """Through the latent format, and the VAE as it decodes before core makes 0..1 of it."""
    with torch.inference_mode():
        model = core_model(kind)
    sigma, exact = 0.6, gradient == "exact"
    x = latents(sigma)
    steering = guided(model, load_image(gradient, vae=small_vae))
    plain, towards = (evaluated(core_guider(m), x, sigma) for m in (model, steering))
    with torch.inference_mode(False):
        x_in = x.clone().requires_grad_()
        with torch.set_grad_enabled(exact):
            denoised = model.model.apply_model(x_in, torch.full((2,), sigma))
        x0 = denoised if exact else denoised.requires_grad_()
        pixels = small_vae.first_stage_model.decode(x0 / 0.18215)
        (g,) = torch.autograd.grad(log_prob(judge_path, pixels), x_in if exact else x0)
    alpha = 0.4 if kind == "FLOW" else 1.0
    factor = sigma**2 / alpha if exact else sigma**2 / (alpha**2 + sigma**2)
    expected = 2.0 * factor * g
    assert expected.abs().max() > 1e-3
    assert differ(towards - plain, expected) < 2e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
def test_a_flow_starts_with_finite_guidance(core_model, small_vae, load_image, guided, gradient):
    """At sigma 1 there is no image in x, and alpha is 0."""
    model = guided(core_model("FLOW"), load_image(gradient, vae=small_vae))
    assert bool(evaluated(core_guider(model), latents(1.0), 1.0).isfinite().all())


class RealUNet(torch.nn.Module):
    """Core's own blocks, with a prompt."""

    def __init__(self, channels=4, dtype=None, device=None, operations=None):
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        super().__init__()
        self.dtype = torch.float32
        self.layer = operations.Conv2d(channels, channels, 1, dtype=dtype, device=device)
        shape = {"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32}
        shape |= {"num_res_blocks": [1, 1], "channel_mult": (1, 2), "context_dim": 16}
        shape |= {"num_heads": 2, "use_spatial_transformer": True, "transformer_depth": [1, 1]}
        shape |= {"transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1}
        self.unet = UNetModel(**shape, dtype=torch.float32, operations=operations)

    def forward(self, x, timesteps, context=None, transformer_options=None, **_):
        options = transformer_options or {}
        return self.layer(self.unet(x, timesteps, context=context, transformer_options=options))


def test_a_real_unet_with_a_prompt_made_in_inference_mode(
    core_model, small_vae, load_image, guided
):
    """Weights and prompt are inference tensors, as in a running ComfyUI."""

    def build():
        torch.manual_seed(1)
        model = core_model("EPS", network=RealUNet)
        generator = torch.Generator().manual_seed(2)
        for weight in model.model.parameters():
            weight.data.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        return model, [[torch.randn(1, 5, 16, generator=generator), {}]]

    def at(model, prompt):
        return evaluated(core_guider(model, 2.0, prompt), latents(1.5), 1.5)

    classifier = load_image("exact", vae=small_vae)
    with torch.inference_mode():
        inside, prompt = build()
    assert any(weight.is_inference() for weight in inside.model.parameters())
    outside, same = build()
    expected = at(guided(outside, classifier, 5.0), same)
    assert torch.equal(at(guided(inside, classifier, 5.0), prompt), expected)
    assert differ(at(outside, same), expected) > 1e-4


@pytest.mark.parametrize(
    ("latent_format", "with_vae", "said"),
    [
        ("SD15", False, "SD15 latents.*VAE to vae"),
        ("SD3", True, "decodes 4-channel latents.*16"),
    ],
)
def test_latent_models_that_do_not_fit(
    core_model, load_image, guided, small_vae, latent_format, with_vae, said
):
    import comfy.latent_formats

    model = core_model(latent_format=getattr(comfy.latent_formats, latent_format))
    with pytest.raises(ValueError, match=said):
        guided(model, load_image(vae=small_vae if with_vae else None))


def test_a_vae_of_sound_is_refused(load_image, small_vae, monkeypatch):
    monkeypatch.setattr(small_vae, "latent_dim", 1)
    with pytest.raises(ValueError, match="vae decodes sound"):
        load_image(vae=small_vae)


def test_a_pixel_model_takes_no_notice_of_a_vae(load_image, digits_model, small_vae):
    classifier = load_image(vae=small_vae)
    assert classifier.patchers(digits_model) == [classifier.patcher]


def test_a_model_that_is_only_partly_there(digits_model, load_image, guided, at):
    model = guided(digits_model, load_image("exact"))
    layer = digits_model.model.diffusion_model.out[-1]
    at(model, noisy_images(1.0), 1.0)  # is loaded, as a whole
    whole = layer.bias
    layer.bias = torch.nn.Parameter(whole.to("meta"), requires_grad=False)
    try:
        with pytest.raises(ValueError, match="only partly on the device.*set gradient to cheap"):
            at(model, noisy_images(1.0), 1.0)
    finally:
        layer.bias = whole


def test_a_patch_without_a_graph(digits_model, load_image, guided, at):
    def detached(apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"]).detach()

    model = guided(digits_model, load_image("exact"))
    model.set_model_unet_function_wrapper(detached)
    with pytest.raises(ValueError, match="without torch's graph.*set gradient to cheap"):
        at(model, noisy_images(1.0), 1.0)


def test_a_clean_classifier_is_not_saved_as_a_noisy_one(call, load_image):
    with pytest.raises(ValueError, match="use a noisy classifier"):
        call("SaveNoisyClassifier", classifier=load_image(), filename_prefix="x")


def test_defaults_of_new_nodes(
    load_image, load_classifier, digits_model, guided, at, pack_nodes, judge_path
):
    """A clean classifier is normalised, a noisy one is not; without the inputs, as before them."""
    sigma = table_sigma(digits_model, 500)
    x = noisy_images(sigma)
    plain = at(digits_model, x, sigma)

    def term(classifier, **options):
        return at(guided(digits_model, classifier, 0.5, **options), x, sigma) - plain

    def default(node, name):
        inputs = pack_nodes[node].GET_SCHEMA().inputs
        return next(one.default for one in inputs if one.id == name)

    assert default("ImageClassifierLoader", "looks") > 0
    auto = default("ClassifierGuidance", "normalize")
    clean = load_image()
    rms = term(clean, normalize=auto).flatten(1).square().mean(dim=1).sqrt()
    assert rms.tolist() == pytest.approx([0.5 * sigma / (1 + sigma**2) ** 0.5] * 2, rel=1e-4)
    assert torch.equal(term(clean), term(clean, normalize="off"))
    assert differ(term(clean, normalize="on"), term(clean)) > 0.01
    noisy = load_classifier("digits_classifier.safetensors", dtype="fp32")
    assert torch.equal(term(noisy, normalize=auto), term(noisy))
    assert differ(term(noisy, normalize="on"), term(noisy)) > 0.01


def test_looks_follow_the_seed_of_the_run(load_image, digits_model, guided, label_of):
    """Equal seeds give equal images, from equal noise; without looks the images are others."""

    def run(seed, **looks):
        steered = guided(digits_model, load_image(**looks), 1.0, normalize="on")
        guider = core_guider(steered, 1.0, label_of(digits_model, ""))
        start = noise(2, SIZE)
        return drawn(guider, few_sigmas(digits_model), start=start, seed=seed)

    first, again, other, alone = run(5, looks=2), run(5, looks=2), run(6, looks=2), run(5)
    assert torch.equal(first, again)
    assert differ(first, other) > 0.01 and differ(first, alone) > 0.01
