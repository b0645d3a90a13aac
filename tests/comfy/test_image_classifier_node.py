"""Load Image Classifier, and what it guides, in a real ComfyUI."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from clean_digits import write_trained_resnet
from sampler_runs import evaluated, few_sigmas, noise, sampler_named, with_guider
from test_guided_run import guider_of, sigmas_of, start_of

from guidance import load_adm, load_classifier
from guidance.checkpoints.image_classifiers import load_image_classifier
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain
from guidance.sampling.strength import Strength

JUDGE = "digits_judge.safetensors"
SIZE = 32
LABELS = [3, 8]


@pytest.fixture(scope="module")
def load_image(call, files):
    """A NOISY_CLASSIFIER of clean images: the pack's own judge, unless another is named."""

    def run(gradient="cheap", name=JUDGE, vae=None, dtype="fp32"):
        inputs = {"classifier_name": name, "gradient": gradient, "dtype": dtype}
        return call("ImageClassifierLoader", vae=vae, **inputs)[0]

    return run


@pytest.fixture
def digits_model(load_model):
    """The demo MODEL, in fp32."""
    return load_model("digits_adm.safetensors", dtype="fp32")[0]


@pytest.fixture
def steered(call):
    """A MODEL with Classifier Guidance."""

    def run(model, classifier, scale=2.0, label="3,8", **options):
        inputs = {"classifier": classifier, "label": label, "scale": scale}
        return call("ClassifierGuidance", model=model, **inputs, **options)[0]

    return run


def noisy_images(sigma):
    """x = sigma eps and something in the middle, (2, 3, 32, 32)."""
    x = torch.zeros(2, 3, SIZE, SIZE) - 1
    x[:, :, 8:24, 14:18] = 0.5
    return x + sigma * noise(2, SIZE)


def by_hand(files, x, sigma, cfg=None, clip=True):
    """D(x) and log p(label | D(x)) of the demo files, without any of the pack's guidance."""
    root = "models"
    model = load_adm(f"{root}/diffusion_models/digits_adm.safetensors")
    judge = load_classifier(f"{root}/classifiers/{JUDGE}").network
    t = int((model.schedule.ratios - sigma).abs().argmin())
    t = torch.full((len(x),), float(t))

    def eps(label):
        scaled = x / (1 + sigma**2) ** 0.5
        return model(scaled, t, torch.full((len(x),), label))[0]

    output = eps(10) if cfg is None else eps(10) + cfg * (eps(5) - eps(10))
    denoised = x - sigma * output
    denoised = denoised.clamp(-1, 1) if clip else denoised
    log_probs = F.log_softmax(judge(denoised, torch.zeros(len(x))), dim=1)
    return denoised, log_probs[torch.arange(2), torch.tensor(LABELS)].sum()


def table_sigma(model, t):
    """The sigma of a timestep: between two of them core rounds."""
    return float(model.get_model_object("model_sampling").sigmas[t])


@pytest.mark.parametrize(("t", "cfg"), [(150, None), (500, None), (650, None), (500, 3.0)])
def test_exact_is_autograd_through_the_whole_chain(
    call, load_image, digits_model, steered, files, root, monkeypatch, t, cfg
):
    monkeypatch.chdir(root)
    sigma, scale = table_sigma(digits_model, t), 2.0
    x = noisy_images(sigma)
    labels = ("", None, 1.0) if cfg is None else ("5", "", cfg)
    plain = evaluated(guider_of(call, digits_model, *labels), x, sigma)
    model = steered(digits_model, load_image("exact"), scale)
    term = evaluated(guider_of(call, model, *labels), x, sigma) - plain
    x.requires_grad_()
    denoised, log_prob = by_hand(files, x, sigma, cfg)
    (gradient,) = torch.autograd.grad(log_prob, x)
    expected = scale * sigma**2 * gradient
    size, off = float(expected.abs().max()), float((term - expected).abs().max())
    print(f"timestep {t}, cfg {cfg}: {off:.1e} off, of {size:.2f}")
    assert (plain - denoised).abs().max() < 1e-5 * (cfg or 1.0)  # CFG enlarges rounding, too
    assert size > 1e-3
    assert off < 1e-5 * max(1.0, size)


def test_cheap_is_the_classifiers_gradient_alone(
    call, load_image, digits_model, steered, files, root, monkeypatch
):
    monkeypatch.chdir(root)
    sigma, scale = table_sigma(digits_model, 500), 2.0
    x = noisy_images(sigma)
    plain = evaluated(guider_of(call, digits_model), x, sigma)
    guided = evaluated(guider_of(call, steered(digits_model, load_image(), scale)), x, sigma)
    at_x0 = plain.clone().requires_grad_()
    judge = load_classifier(f"models/classifiers/{JUDGE}").network
    log_probs = F.log_softmax(judge(at_x0, torch.zeros(2)), dim=1)
    (g,) = torch.autograd.grad(log_probs[torch.arange(2), torch.tensor(LABELS)].sum(), at_x0)
    expected = scale * sigma**2 / (1 + sigma**2) * g
    assert expected.abs().max() > 1e-3
    assert (guided - plain - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kinds", [("exact", "exact"), ("exact", "cheap"), ("cheap", "exact")])
def test_two_in_a_row_add_up(call, load_image, digits_model, steered, kinds):
    """And all of them judge the model's own prediction, not one that was guided already."""
    sigma = table_sigma(digits_model, 500)
    x = noisy_images(sigma)

    def at(model):
        return evaluated(guider_of(call, model), x, sigma)

    classifiers = [load_image(kind) for kind in kinds]
    plain = at(digits_model)
    alone = [at(steered(digits_model, one, 2.0)) - plain for one in classifiers]
    both = digits_model
    for one in classifiers:
        both = steered(both, one, 2.0)
    assert (at(both) - plain - sum(alone)).abs().max() < 1e-5
    assert min(float(term.abs().max()) for term in alone) > 1e-2


@pytest.mark.parametrize("first", ["exact", "noisy"])
def test_together_with_a_noisy_classifier(
    call, load_image, load_classifier, digits_model, steered, first
):
    sigma = table_sigma(digits_model, 500)
    x = noisy_images(sigma)
    noisy = load_classifier("digits_classifier.safetensors", dtype="fp32")
    row = [load_image("exact"), noisy][:: 1 if first == "exact" else -1]

    def at(model):
        return evaluated(guider_of(call, model), x, sigma)

    plain = at(digits_model)
    alone = sum(at(steered(digits_model, one)) - plain for one in row)
    both = steered(steered(digits_model, row[0]), row[1])
    assert (at(both) - plain - alone).abs().max() < 1e-5


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
def test_scale_zero_is_bit_identical_and_schedule_zero_costs_nothing(
    call, load_image, digits_model, steered, pack_module, gradient
):
    classifier = load_image(gradient)
    sigma = table_sigma(digits_model, 500)
    x = noisy_images(sigma)
    plain = evaluated(guider_of(call, digits_model), x, sigma)
    zero = steered(digits_model, classifier, 0.0)
    assert torch.equal(evaluated(guider_of(call, zero), x, sigma), plain)
    never = pack_module("guidance").GuidanceSchedule.constant(0.0)
    asleep = steered(digits_model, classifier, 2.0, schedule=never)
    seen = []
    hook = classifier.classifier.network.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(evaluated(guider_of(call, asleep), x, sigma), plain)
    hook.remove()
    assert not seen


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_runs_equal_the_librarys(call, load_image, files, load_model, steered, gradient, method):
    """Both algorithms: ddpm asks the guide for its gradient."""
    import comfy.k_diffusion.sampling as k_sampling

    model = load_model()[0]
    sigmas = sigmas_of(call, model, "6")
    guided = steered(model, load_image(gradient), 3.0)
    (sampler,) = call("SamplerADM", method=method, eta=0.0)
    got = with_guider(guider_of(call, guided), sampler, sigmas)
    draw = k_sampling.default_noise_sampler(noise(), seed=11)
    library = load_adm(files["diffusion_models"] / "unconditional.safetensors")
    steps = chain(library.schedule.alpha_bar.tolist(), respaced_timesteps("6"))
    clean = load_image_classifier(judge_path(call), gradient=gradient)

    def run(scale):
        guides = [Guide(clean, torch.tensor(LABELS), Strength(scale=scale))]
        options = {"method": method, "guides": guides, "noise": lambda x: draw(None, None)}
        return sample(library, start_of(sigmas, noise()), steps, **options)

    assert (got - run(3.0)).abs().max() < 1e-3
    assert (got - run(0.0)).abs().max() > 0.01


def judge_path(call):
    """Where the demo judge is."""
    import folder_paths

    return folder_paths.get_full_path("classifiers", JUDGE)


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
def test_the_trace_sees_it(call, load_image, digits_model, steered, gradient):
    sigma = table_sigma(digits_model, 500)
    x = noisy_images(sigma)
    plain = evaluated(guider_of(call, digits_model), x, sigma)
    model, trace = call("GuidanceTrace", model=steered(digits_model, load_image(gradient), 2.0))
    term = evaluated(guider_of(call, model), x, sigma) - plain
    (record,) = trace.to_dict()["evaluations"][0]["classifiers"]
    assert record["scale"] == 2.0
    assert record["norm"] == pytest.approx(float(term.flatten(1).norm(dim=1).mean()), rel=1e-3)
    judge = load_image().on_device()
    expected = judge.image_log_probs(plain)[torch.arange(2), torch.tensor(LABELS)]
    assert record["log_probs"] == pytest.approx(expected.tolist(), abs=1e-4)


# --- latent models ---------------------------------------------------------------------------


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
def test_latents_are_decoded(core_model, small_vae, load_image, steered, gradient, kind):
    """Through the latent format, and the VAE as it decodes before core makes 0..1 of it."""
    with torch.inference_mode():
        model = core_model(kind)
    sigma = 0.6
    x = latents(sigma)
    plain = evaluated(plain_guider(model), x, sigma)
    guided = evaluated(plain_guider(steered(model, load_image(gradient, vae=small_vae))), x, sigma)
    # what a run gives back is in the VAE's units
    term = (guided - plain) * 0.18215
    with torch.inference_mode(False):
        base, decoder = model.model, small_vae.first_stage_model
        x_in = x.clone().requires_grad_()
        with torch.set_grad_enabled(gradient == "exact"):
            denoised = base.apply_model(x_in, torch.full((2,), sigma))
        x0 = denoised if gradient == "exact" else denoised.requires_grad_()
        pixels = decoder.decode(x0 / 0.18215)
        judge = load_classifier(judge_path(None)).network
        log_probs = F.log_softmax(judge(pixels, torch.zeros(2)), dim=1)
        chosen = log_probs[torch.arange(2), torch.tensor(LABELS)].sum()
        (g,) = torch.autograd.grad(chosen, x_in if gradient == "exact" else x0)
    alpha = 0.4 if kind == "FLOW" else 1.0
    factor = sigma**2 / alpha
    if gradient == "cheap":
        factor = sigma**2 / (alpha**2 + sigma**2)
    expected = 2.0 * factor * g
    assert expected.abs().max() > 1e-3
    assert (term - expected).abs().max() < 2e-5 * max(1.0, float(expected.abs().max()))


def plain_guider(model):
    """KSampler's guider without a prompt."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    conds = [[torch.zeros(1, 1, 1), {}]]
    guider.set_conds(conds, conds)
    guider.set_cfg(1.0)
    return guider


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
def test_a_flow_starts_with_finite_guidance(core_model, small_vae, load_image, steered, gradient):
    """At sigma 1 there is no image in x, and alpha is 0."""
    model = steered(core_model("FLOW"), load_image(gradient, vae=small_vae))
    assert bool(evaluated(plain_guider(model), latents(1.0), 1.0).isfinite().all())


def test_a_real_unet_with_a_prompt_made_in_inference_mode(core_model, small_vae, load_image, call):
    """Core's own blocks, weights and prompt being inference tensors, as in a running ComfyUI."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    class Network(torch.nn.Module):
        def __init__(self, channels=4, dtype=None, device=None, operations=None):
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
            output = self.unet(x, timesteps, context=context, transformer_options=options)
            return self.layer(output)

    import comfy.samplers

    def build():
        torch.manual_seed(1)
        model = core_model("EPS", network=Network)
        generator = torch.Generator().manual_seed(2)
        for weight in model.model.parameters():
            weight.data.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        return model, [[torch.randn(1, 5, 16, generator=generator), {}]]

    def drawn(model, prompt):
        guided = call(
            "ClassifierGuidance", model=model, classifier=classifier, label="3,8", scale=5.0
        )[0]
        guider = comfy.samplers.CFGGuider(guided)
        guider.set_conds(prompt, prompt)
        guider.set_cfg(2.0)
        return evaluated(guider, latents(1.5), 1.5)

    classifier = load_image("exact", vae=small_vae)
    with torch.inference_mode():
        inside = build()
    assert any(weight.is_inference() for weight in inside[0].model.parameters())
    outside = build()
    got, expected = drawn(*inside), drawn(*outside)
    assert torch.equal(got, expected)
    plain = comfy.samplers.CFGGuider(outside[0])
    plain.set_conds(outside[1], outside[1])
    plain.set_cfg(2.0)
    assert (evaluated(plain, latents(1.5), 1.5) - expected).abs().max() > 1e-4


# --- what is refused -------------------------------------------------------------------------


def test_a_latent_model_needs_the_vae(core_model, load_image, steered, small_vae):
    with pytest.raises(ValueError, match="works on SD15 latents; connect the model's VAE to vae"):
        steered(core_model(), load_image())


def test_a_vae_of_another_model(core_model, load_image, steered, small_vae):
    import comfy.latent_formats

    model = core_model(latent_format=comfy.latent_formats.SD3)
    with pytest.raises(ValueError, match="decodes 4-channel latents, but this model's have 16"):
        steered(model, load_image(vae=small_vae))


def test_video_is_refused_by_name(core_model, load_image, steered, small_vae):
    import comfy.latent_formats

    model = core_model(latent_format=comfy.latent_formats.Wan21)
    with pytest.raises(ValueError, match="works on Wan21 latents, which are video"):
        steered(model, load_image(vae=small_vae))


def test_a_vae_of_video_is_refused(load_image, small_vae, monkeypatch):
    monkeypatch.setattr(small_vae, "latent_dim", 3)
    with pytest.raises(ValueError, match="vae decodes video"):
        load_image(vae=small_vae)


def test_a_pixel_model_takes_no_notice_of_a_vae(load_image, digits_model, small_vae):
    classifier = load_image(vae=small_vae)
    assert classifier.patchers(digits_model) == [classifier.patcher]


def test_streamed_weights(digits_model, load_image, steered, monkeypatch, small_vae):
    """Exact names cheap; a streamed VAE is replaced by what core makes of it, or refused."""
    exact = load_image("exact")
    monkeypatch.setattr(type(digits_model), "is_dynamic", lambda self: True)
    with pytest.raises(ValueError, match="streamed .*set gradient to cheap"):
        steered(digits_model, exact)
    with pytest.raises(ValueError, match="vae has weights that are streamed"):
        load_image(vae=small_vae)


def test_of_a_streamed_vae_the_ordinary_one_is_taken(load_image, small_vae, monkeypatch):
    """As core itself does where it cannot stream."""
    ordinary = small_vae.patcher

    class Streamed:
        def is_dynamic(self):
            return True

        def get_non_dynamic_delegate(self):
            return ordinary

    monkeypatch.setattr(small_vae, "patcher", Streamed())
    assert load_image(vae=small_vae).vae.patcher.model is ordinary.model


def test_a_model_that_is_only_partly_there(digits_model, load_image, steered, call):
    model = steered(digits_model, load_image("exact"))
    layer = digits_model.model.diffusion_model.out[-1]
    evaluated(guider_of(call, model), noisy_images(1.0), 1.0)  # is loaded, as a whole
    whole = layer.bias
    layer.bias = torch.nn.Parameter(whole.to("meta"), requires_grad=False)
    try:
        with pytest.raises(ValueError, match="only partly on the device.*set gradient to cheap"):
            evaluated(guider_of(call, model), noisy_images(1.0), 1.0)
    finally:
        layer.bias = whole


def test_a_patch_without_a_graph(digits_model, load_image, steered, call):
    def detached(apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"]).detach()

    model = steered(digits_model, load_image("exact"))
    model.set_model_unet_function_wrapper(detached)
    with pytest.raises(ValueError, match="without torch's graph.*set gradient to cheap"):
        evaluated(guider_of(call, model), noisy_images(1.0), 1.0)


# --- files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digit_resnet(files):
    """A small classifier of transformers, trained on digits of its own."""
    folder = files["classifiers"] / "people" / "digit_resnet"
    accuracy = write_trained_resnet(folder)
    assert accuracy > 0.9
    yield "people/digit_resnet"
    shutil.rmtree(folder.parent)


def test_folders_are_offered_and_what_is_in_them_is_not(pack_nodes, digit_resnet, files):
    (files["classifiers"] / "people" / "lone.safetensors").write_bytes(b"")
    schema = pack_nodes["ImageClassifierLoader"].define_schema()
    offered = schema.inputs[0].options
    assert digit_resnet in offered and JUDGE in offered
    assert "people/lone.safetensors" in offered
    assert not [name for name in offered if name.startswith(digit_resnet + "/")]


def test_a_fingerprint_notices_a_new_file(pack_nodes, digit_resnet, files):
    node = pack_nodes["ImageClassifierLoader"]
    before = node.fingerprint_inputs(digit_resnet)
    assert before == node.fingerprint_inputs(digit_resnet)
    path = files["classifiers"] / digit_resnet / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"note": "other"}))
    assert node.fingerprint_inputs(digit_resnet) != before
    assert node.fingerprint_inputs(JUDGE) != node.fingerprint_inputs("nowhere")


@pytest.mark.parametrize("name", ["../diffusion_models", "nowhere", "/", "people"])
def test_names_that_are_none(load_image, digit_resnet, name):
    with pytest.raises(ValueError, match="There is no model file"):
        load_image(name=name)


def test_its_classes_are_offered(pack_module, digit_resnet):
    server = pack_module("nodes.host.server")
    assert server.classes_of("image_classifiers", digit_resnet)[3] == "digit 3"
    assert server.classes_of("image_classifiers", JUDGE)[3] == "3"
    assert server.classes_of("image_classifiers", "nowhere") is None


@pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize("classifier", ["folder", "judge"])
def test_classify_image(call, load_image, digit_resnet, classifier, small_vae, dtype):
    """Finished images are read as they are, with a VAE, too; and named."""
    from clean_digits import digits

    images, labels = digits()
    images, labels = images[-40:], labels[-40:].tolist()
    name = digit_resnet if classifier == "folder" else JUDGE
    loaded = load_image(name=name, vae=small_vae, dtype=dtype)
    shown = (images.movedim(1, -1) + 1) / 2
    (text,) = call("ClassifyImage", classifier=loaded, image=shown, top_k=1)
    named = [
        line.split(": ")[1].rsplit(" ", 2)[0].removeprefix("digit ") for line in text.split("\n")
    ]
    right = sum(name == str(label) for name, label in zip(named, labels, strict=True))
    assert right >= 36


def test_a_clean_classifier_is_not_saved_as_a_noisy_one(call, load_image):
    with pytest.raises(ValueError, match="use a noisy classifier"):
        call("SaveNoisyClassifier", classifier=load_image(), filename_prefix="x")


# --- what it is worth ------------------------------------------------------------------------


def test_a_trained_clean_classifier_raises_the_judges_accuracy(
    call, load_model, load_image, steered, digit_resnet, say_at_the_end
):
    """By at least 30 points, in both ways, on the model that draws any digit."""
    count = 40
    model = load_model("digits_adm.safetensors", dtype="fp32")[0]
    judge = load_image().on_device()
    labels = torch.arange(count) % 10
    start = noise(count, SIZE)
    sigmas = few_sigmas(model, 20)

    def accuracy(guided):
        drawn = with_guider(guider_of(call, guided), sampler_named("euler"), sigmas, start=start)
        return float((judge.image_log_probs(drawn).argmax(dim=1) == labels).float().mean())

    names = ",".join(map(str, labels.tolist()))
    found = {"unguided": accuracy(model)}
    for gradient, scale in (("cheap", 40.0), ("exact", 3.0)):
        classifier = load_image(gradient, digit_resnet)
        found[gradient] = accuracy(steered(model, classifier, scale, names))
    say_at_the_end(f"judge accuracy with an image classifier: {found}")
    assert found["unguided"] < 0.25
    assert min(found["cheap"], found["exact"]) >= found["unguided"] + 0.3
