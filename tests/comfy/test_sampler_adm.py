"""ADM Sampler in a run: seeds, masks, previews, split runs, and whose learned variance it takes."""

from __future__ import annotations

import pytest
import torch
from core_guiders import PATCHES, SAMPLING, region
from mixture_model import Mixture
from sampler_runs import SEED, evaluated, noise, picture, sampler_named, with_guider
from tiny_models import SIZE

from guidance import NoisyClassifier, load_adm
from guidance.sampling.loop import Guide, Step, chain, ddpm_step, ddpm_variance, sample
from guidance.sampling.respacing import respaced_timesteps

LABELS = [0, 3]
SCALE = 2.0
NOW, NEXT = 500, 300  # timesteps of a single step


@pytest.fixture(scope="module")
def guided(call, place_classifier):
    """The MODEL with Classifier Guidance towards LABELS."""
    classifiers = [place_classifier(Mixture(seed)) for seed in (0, 1)]

    def run(model, scale=SCALE, label="0,3", which=0):
        inputs = {"model": model, "classifier": classifiers[which], "label": label}
        return call("ClassifierGuidance", **inputs, scale=scale)[0]

    return run


@pytest.fixture(scope="module")
def classifiers():
    """The same, without ComfyUI."""
    labels = [f"class {index}" for index in range(4)]
    return [NoisyClassifier(Mixture(seed), "linear", labels) for seed in (0, 1)]


@pytest.fixture(scope="module")
def ddpm(call):
    """The SAMPLER of algorithm 1."""
    return call("SamplerADM", method="ddpm", eta=0.0)[0]


@pytest.fixture(scope="module")
def scheduled(call, unconditional):
    """ADM Scheduler's SIGMAS."""

    def run(respacing="ddim25", denoise=1.0):
        return call("ADMScheduler", model=unconditional, respacing=respacing, denoise=denoise)[0]

    return run


def draws(seed=SEED, like=None):
    """What core's ancestral samplers draw in a run with that seed."""
    import comfy.k_diffusion.sampling as k_sampling

    draw = k_sampling.default_noise_sampler(noise() if like is None else like, seed=seed)
    return lambda x=None: draw(None, None)


def differ(a, b):
    return (a - b).abs().max().item()


def library_run(files, x, method, name="unconditional", respacing="ddim25", last=None, **options):
    """The library's run of ADM Scheduler's steps, the last ones only if asked."""
    model = load_adm(files["diffusion_models"] / f"{name}.safetensors")
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps(respacing))
    return sample(model, x, steps[-last:] if last else steps, method=method, **options)


def start_of(sigmas):
    """What a run over these sigmas starts from, in VP coordinates."""
    return noise() * sigmas[0] / (1 + sigmas[0] ** 2) ** 0.5


# --- seeds -----------------------------------------------------------------------------------


def test_seeds(unconditional, guided, wiring, ddpm, scheduled):
    """The same seed draws the same images, another one others."""
    guider, sigmas = wiring.guider("basic", guided(unconditional)), scheduled("8")
    first, again, other = (with_guider(guider, ddpm, sigmas, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert differ(first, other) > 0.1


def test_noise_is_drawn_as_core_draws_it(call, unconditional, guided, wiring, scheduled):
    """DDIM at eta 1 is DDPM with the posterior's variance: core's "ddpm", draw for draw.

    Core draws for the whole batch at once, one draw in every step but the last.
    """
    guider, sigmas = wiring.guider("basic", guided(unconditional)), scheduled("10")
    (sampler,) = call("SamplerADM", method="ddim", eta=1.0)
    ours, cores = (with_guider(guider, s, sigmas) for s in (sampler, sampler_named("ddpm")))
    assert differ(ours, cores) < 1e-4
    (dry,) = call("SamplerADM", method="ddim", eta=0.0)
    assert differ(with_guider(guider, dry, sigmas), cores) > 0.1


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_draw_as_core_does(unconditional, wiring, ddpm, files, scheduled, batch):
    sigmas = scheduled("10")
    start = noise(batch)
    got = with_guider(wiring.guider("basic", unconditional), ddpm, sigmas, start=start)
    draw = draws(like=start)
    x = start * sigmas[0] / (1 + sigmas[0] ** 2) ** 0.5
    expected = library_run(files, x, "ddpm", respacing="10", noise=draw)
    assert differ(got, expected) < 1e-4


# --- one step by hand: the mean, the shift, and whose variance ---------------------------------


def learned_variance(files, kind, x, t):
    """v of the prediction that is asked for, from the library's network."""
    model = load_adm(files["diffusion_models"] / "conditional.safetensors")
    model.network.label_emb.weight.data *= 100

    def v(where, labels):
        return model(where, torch.full((2,), float(t)), torch.tensor(labels))[1]

    left, right = x.split(SIZE // 2, dim=3)
    if kind == "areas":
        return torch.cat([v(left, [1, 1]), v(right, [3, 3])], dim=3)
    if kind == "masks":
        return region() * v(x, [1, 1]) + (1 - region()) * v(x, [3, 3])
    return v(x, [1, 2])


def step_by_hand(x, denoised, v, gradient, sigmas, mask=1.0):
    """DDPM from sigmas[0] to sigmas[1], its mean shifted by Sigma times the gradient.

    Without v the variance is beta.
    """
    before, after = (1 / (1 + sigma.double() ** 2) for sigma in sigmas)
    step = Step(-1, float(before), float(after), float(1 - before))
    to_vp = (1 + sigmas[0] ** 2) ** 0.5
    beta = torch.full_like(x, float(1 - before / after))
    variance = beta if v is None else ddpm_variance(step, v, x)
    shift = variance * gradient * to_vp * mask
    drawn = ddpm_step(x / to_vp, denoised, variance, step, shift, draws(like=x)())
    return drawn * (1 + sigmas[1] ** 2) ** 0.5


KINDS = ["basic", "cfg 1", "cfg 3", "perp-neg", "dual", "nested dual", "dual model"]


@pytest.mark.parametrize("kind", [*KINDS, "areas", "masks", *PATCHES])
def test_variance_is_of_what_is_asked_for(
    conditional, guided, wiring, ddpm, classifiers, files, kind
):
    """With every guider and region the learned variance is that of the positive conditioning."""
    table = conditional.get_model_object("model_sampling").sigmas
    sigmas = table[torch.tensor([NOW, NEXT])]
    x = sigmas[0] * noise()

    def guider(model):
        if kind in PATCHES:
            return wiring.guider("cfg 3 against", wiring.patched(kind, model))
        return wiring.guider(kind, model)

    plain = evaluated(guider(conditional), x, float(sigmas[0]))
    gradient = SCALE * classifiers[0].gradient(x, sigmas[0], torch.tensor(LABELS))
    v = learned_variance(files, kind, x / (1 + sigmas[0] ** 2) ** 0.5, NOW)
    expected = step_by_hand(x, plain, v, gradient, sigmas)
    got = with_guider(guider(guided(conditional)), ddpm, sigmas)
    assert differ(got, expected) < 1e-4
    # what it would be without the learned variance, and without guidance
    assert differ(step_by_hand(x, plain, None, gradient, sigmas), expected) > 0.01
    assert differ(step_by_hand(x, plain, v, 0 * gradient, sigmas), expected) > 0.01


def test_a_second_evaluation_does_not_count(conditional, wiring, ddpm):
    """Patches that ask the network once more, of another image, leave the variance alone."""
    import comfy.samplers

    def asks_again(args):
        cond = args["cond"]
        x = args["input"]
        for other in (torch.zeros_like(x), 3 * x):
            inputs = (args["model"], [cond], other, args["sigma"], args["model_options"])
            comfy.samplers.calc_cond_batch(*inputs)
        return args["denoised"]

    curious = conditional.clone()
    curious.set_model_sampler_post_cfg_function(asks_again)
    sigmas = conditional.get_model_object("model_sampling").sigmas[torch.tensor([NOW, NEXT])]
    plain, asked = (
        with_guider(wiring.guider("cfg 3", m), ddpm, sigmas) for m in (conditional, curious)
    )
    assert torch.equal(plain, asked)


def test_runs_do_not_pile_up(conditional, guided, wiring, ddpm, scheduled):
    """What ADM Sampler hangs into an evaluation is there once, and gone after the run."""
    hung = []

    def count(args):
        wrappers = args["model_options"]["transformer_options"]["wrappers"]
        hung.append(sum(len(some) for some in wrappers["calc_cond_batch"].values()))
        return args["denoised"]

    model = guided(conditional)
    model.set_model_sampler_post_cfg_function(count)
    guider, sigmas = wiring.guider("cfg 3", model), scheduled("6")
    before = str(model.model_options)
    first = with_guider(guider, ddpm, sigmas)
    assert hung == [1] * 6
    assert torch.equal(with_guider(guider, ddpm, sigmas), first)
    assert str(model.model_options) == before


def test_other_models_have_no_learned_variance(core_model, call, ddpm):
    """An EPS or V model of core: beta, the upper end of the range, as in the original."""
    import comfy.samplers

    for kind in ("EPS", "V_PREDICTION"):
        model = core_model(kind)
        guider = comfy.samplers.CFGGuider(model)
        nothing = [[torch.zeros(1, 1, 1), {}]]
        guider.set_conds(nothing, nothing)
        start = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
        sigmas = model.get_model_object("model_sampling").sigmas[torch.tensor([NOW, NEXT])]
        x = sigmas[0] * start
        latent = {"latent": torch.zeros_like(start), "start": start}
        inside = model.model.process_latent_in
        denoised = inside(evaluated(guider, x, float(sigmas[0])))
        got = inside(with_guider(guider, ddpm, sigmas, **latent))
        expected = step_by_hand(x, denoised, None, 0 * x, sigmas)
        assert differ(got, expected) < 1e-4, kind


# --- whole runs against the library ----------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_cfg_and_classifier_together(
    load_model, guided, wiring, ddpm, classifiers, files, scheduled, cfg
):
    """CFG moves the mean, and the variance stays the conditional one."""
    model, sigmas = load_model("conditional.safetensors")[0], scheduled()
    got = with_guider(wiring.guider(f"cfg {cfg:.0f}", guided(model)), ddpm, sigmas)
    expected = library_run(
        files,
        start_of(sigmas),
        "ddpm",
        "conditional",
        cfg=cfg,
        labels=torch.tensor([1, 2]),
        guides=[Guide(classifiers[0], torch.tensor(LABELS), SCALE)],
        noise=draws(),
    )
    assert differ(got, expected) < 1e-4


def test_two_classifiers(unconditional, guided, wiring, ddpm, classifiers, files, scheduled):
    sigmas = scheduled()
    model = guided(guided(unconditional), scale=-1.0, label="1,2", which=1)
    got = with_guider(wiring.guider("basic", model), ddpm, sigmas)
    guides = [Guide(classifiers[0], torch.tensor(LABELS), SCALE)]
    alone, both = (
        library_run(files, start_of(sigmas), "ddpm", guides=some, noise=draws())
        for some in (guides, [*guides, Guide(classifiers[1], torch.tensor([1, 2]), -1.0)])
    )
    assert differ(got, both) < 1e-4
    assert differ(alone, both) > 0.01


def test_split_runs_draw_from_their_own_seeds(
    unconditional, guided, wiring, ddpm, classifiers, files, call_core, scheduled
):
    """The second run starts its own draws, as core's ancestral samplers do."""
    sigmas = scheduled("8")
    high, low = call_core(SAMPLING, "SplitSigmas", sigmas=sigmas, step=4)
    guider = wiring.guider("basic", guided(unconditional))
    first = with_guider(guider, ddpm, high, seed=5)
    got = with_guider(guider, ddpm, low, first, start=torch.zeros_like(first), seed=6)
    sources, count = [draws(5), draws(6)], iter(range(8))
    expected = library_run(
        files,
        start_of(sigmas),
        "ddpm",
        respacing="8",
        guides=[Guide(classifiers[0], torch.tensor(LABELS), SCALE)],
        noise=lambda x: sources[next(count) // 4](),
    )
    assert differ(got, expected) < 1e-4


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_ksampler_nodes_follow_the_class(
    call, call_core, label_of, unconditional, guided, classifiers, scheduled, sampler
):
    """Through SamplerCustom, from a given picture with denoise 0.6."""
    (chosen,) = call("SamplerADM", method=sampler, eta=0.0)

    def opinion(model):
        nothing = label_of(model, "")
        out = call_core(
            SAMPLING,
            "SamplerCustom",
            model=model,
            add_noise=True,
            noise_seed=7,
            cfg=1.0,
            positive=nothing,
            negative=nothing,
            sampler=chosen,
            sigmas=scheduled("20", 0.6),
            latent_image={"samples": picture()},
        )[0]["samples"]
        assert torch.isfinite(out).all()
        return classifiers[0].log_probs(out, 0.0)[[0, 1], LABELS]

    assert (opinion(guided(unconditional)) > opinion(unconditional)).all()


# --- masks and previews ------------------------------------------------------------------------


@pytest.mark.parametrize("differential", [False, True], ids=["soft mask", "differential"])
def test_masked_step_by_hand(
    unconditional, guided, wiring, ddpm, classifiers, call_core, files, differential
):
    """The mean is shifted where the model may draw, as much as the mask lets it.

    Differential Diffusion makes the mask of each step out of the given one.
    """
    table = unconditional.get_model_object("model_sampling").sigmas
    sigmas, given = table[torch.tensor([NOW, NEXT, 100])], picture()
    mask = torch.linspace(0, 1, SIZE).expand(1, 1, SIZE, SIZE).contiguous()
    plain, model = unconditional, guided(unconditional)
    if differential:
        node = ("comfy_extras.nodes_differential_diffusion", "DifferentialDiffusion")
        plain, model = (call_core(*node, model=m, strength=1.0)[0] for m in (plain, model))
    x = given + sigmas[0] * noise()
    more = {"latent": given, "mask": mask}
    denoised = evaluated_in(wiring.guider("basic", plain), x, sigmas, **more)
    # at the first of its steps Differential Diffusion lets draw only what is fully masked
    where = (mask >= 1.0).float() if differential else mask
    gradient = SCALE * classifiers[0].gradient(x, sigmas[0], torch.tensor(LABELS))
    network = load_adm(files["diffusion_models"] / "unconditional.safetensors")
    v = network(x / (1 + sigmas[0] ** 2) ** 0.5, torch.full((2,), float(NOW)), None)[1]
    expected = step_by_hand(x, denoised, v, gradient, sigmas[:2], where)
    seen = []
    with_guider(
        wiring.guider("basic", model),
        ddpm,
        sigmas,
        **more,
        callback=lambda step, x0, now, total: seen.append(now),
    )
    assert differ(seen[1], expected) < 1e-4
    unmasked = step_by_hand(x, denoised, v, gradient, sigmas[:2])
    assert differ(unmasked, expected) > 0.01


def evaluated_in(guider, x, sigmas, latent, mask):
    """The denoised image of the first step, in a run over all of these sigmas."""
    seen = []

    def first(model, start, sigmas, extra_args=None, **__):
        seen.append(model(x, sigmas[:1].expand(len(x)), **extra_args))
        return start

    import comfy.samplers

    with_guider(guider, comfy.samplers.KSAMPLER(first), sigmas, latent, mask)
    return seen[0]


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_previews(call, call_core, unconditional, guided, wiring, classifiers, scheduled, method):
    """The callback's x0 is what the step is built on.

    DDIM (algorithm 2) guides the denoised image, as core's samplers do. DDPM (algorithm 1) leaves
    it alone and shifts the mean: its x0 is the plain prediction, and the guided x is beside it.
    """
    sigmas = scheduled("6")
    (sampler,) = call("SamplerADM", method=method, eta=0.0)
    seen = []
    out = with_guider(
        wiring.guider("basic", guided(unconditional)),
        sampler,
        sigmas,
        callback=lambda step, x0, x, total: seen.append((step, x0, x, total)),
    )
    assert [step for step, *_ in seen] == list(range(6))
    assert {total for *_, total in seen} == {6}
    plain = wiring.guider("basic", unconditional)
    for (_, x0, x, _), sigma in zip(seen, sigmas.tolist(), strict=False):
        expected = evaluated(plain, x, sigma)
        if method == "ddim":
            gradient = classifiers[0].gradient(x, sigma, torch.tensor(LABELS))
            expected = expected + SCALE * sigma**2 * gradient
        assert differ(x0, expected) < 1e-4
    assert torch.isfinite(out).all()
