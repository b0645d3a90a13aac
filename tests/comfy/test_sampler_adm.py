"""ADM Sampler in a run: seeds, masks, previews, split runs, and whose learned variance it takes."""

from __future__ import annotations

import pytest
import torch
from core_guiders import PATCHES, SAMPLING, region
from library_runs import draws, guide, library_run, mixture_classifier, start_of
from sampler_runs import core_guider, differ, drawn, evaluated, latent_noise, noise, picture
from tiny_models import SIZE

from guidance import load_adm
from guidance.sampling.steps import Step, ddpm_step, ddpm_variance

LABELS = [0, 3]
SCALE = 2.0
NOW, NEXT = 500, 300  # timesteps of a single step


@pytest.fixture(scope="module")
def guided(steered, mixtures):
    """The MODEL with Classifier Guidance towards LABELS."""
    return lambda model, scale=SCALE, label="0,3", which=0: steered(
        model, mixtures[which], label, scale
    )


@pytest.fixture(scope="module")
def classifiers():
    """The same, without ComfyUI."""
    return [mixture_classifier(seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def ddpm(sampler_of):
    """The SAMPLER of algorithm 1."""
    return sampler_of("ddpm of the pack")


@pytest.fixture(scope="module")
def expected(files, adm_sigmas):
    """The library's run of algorithm 1 over the same steps."""

    def run(guides=(), name="unconditional", respacing="ddim10", noise=None, start=None, **options):
        path = files["diffusion_models"] / f"{name}.safetensors"
        x = start_of(adm_sigmas(respacing), start)
        options = {"method": "ddpm", **options, "noise": noise or draws(like=start)}
        return library_run(path, x, respacing, guides=guides, **options)

    return run


def test_noise_is_drawn_as_core_draws_it(call, unconditional, guided, wiring, adm_sigmas):
    """DDIM at eta 1 is DDPM with the posterior's variance: core's "ddpm", draw for draw.

    Core draws for the whole batch at once, one draw in every step but the last.
    """
    guider, sigmas = wiring.guider("basic", guided(unconditional)), adm_sigmas("10")
    wet, dry = (call("SamplerADM", method="ddim", eta=eta)[0] for eta in (1.0, 0.0))
    cores = drawn(guider, sigmas, "ddpm")
    assert differ(drawn(guider, sigmas, wet), cores) < 1e-4
    assert differ(drawn(guider, sigmas, dry), cores) > 0.1


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_draw_as_core_does(unconditional, wiring, ddpm, expected, adm_sigmas, batch):
    start = noise(batch)
    got = drawn(wiring.guider("basic", unconditional), adm_sigmas("10"), ddpm, start=start)
    assert differ(got, expected(respacing="10", start=start)) < 1e-4


def learned_variance(files, kind, x, t):
    """v of the positive prediction, from the library's network."""
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
def test_variance_is_of_the_positive_conditioning(
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
    got = drawn(guider(guided(conditional)), sigmas, ddpm)
    assert differ(got, expected) < 1e-4
    # what it would be without the learned variance, and without guidance
    assert differ(step_by_hand(x, plain, None, gradient, sigmas), expected) > 0.01
    assert differ(step_by_hand(x, plain, v, 0 * gradient, sigmas), expected) > 0.01


def test_a_second_evaluation_does_not_count(conditional, wiring, ddpm):
    """Patches that also evaluate the network at another image leave the variance alone."""
    import comfy.samplers

    def evaluates_more(args):
        cond = args["cond"]
        x = args["input"]
        for other in (torch.zeros_like(x), 3 * x):
            inputs = (args["model"], [cond], other, args["sigma"], args["model_options"])
            comfy.samplers.calc_cond_batch(*inputs)
        return args["denoised"]

    curious = conditional.clone()
    curious.set_model_sampler_post_cfg_function(evaluates_more)
    sigmas = conditional.get_model_object("model_sampling").sigmas[torch.tensor([NOW, NEXT])]
    both = (drawn(wiring.guider("cfg 3", m), sigmas, ddpm) for m in (conditional, curious))
    assert torch.equal(*both)


def test_a_run_leaves_nothing_behind(conditional, guided, wiring, ddpm, adm_sigmas):
    """What ADM Sampler hooks into its evaluations is gone after the run."""
    model = guided(conditional)
    before = str(model.model_options)
    guider, sigmas = wiring.guider("cfg 3", model), adm_sigmas("6")
    first = drawn(guider, sigmas, ddpm)
    assert torch.equal(drawn(guider, sigmas, ddpm), first)
    assert str(model.model_options) == before


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION"])
def test_other_models_have_no_learned_variance(core_model, ddpm, kind):
    """An EPS or V model of core: beta, the upper end of the range, as in the original."""
    model = core_model(kind)
    guider, start = core_guider(model), latent_noise(2, 4, SIZE, SIZE)
    sigmas = model.get_model_object("model_sampling").sigmas[torch.tensor([NOW, NEXT])]
    x = sigmas[0] * start
    got = model.model.process_latent_in(drawn(guider, sigmas, ddpm, start=start))
    denoised = evaluated(guider, x, float(sigmas[0]))
    assert differ(got, step_by_hand(x, denoised, None, 0 * x, sigmas)) < 1e-4


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("FLOW", [1.0, 0.5, 0.0], r"flow model.*\(euler\)"),
        ("EPS", [0.0, 1.0, 3.0], "sigmas go from 0 to 1 in step 1.*ADM Scheduler"),
        ("EPS", [3.0, 3.0, 0.0], "sigmas go from 3 to 3 in step 1.*ADM Scheduler"),
    ],
    ids=["flow", "flipped", "repeated"],
)
def test_what_it_cannot_sample_is_refused(call, core_model, method, kind, values, said):
    (sampler,) = call("SamplerADM", method=method, eta=float(method == "ddim"))
    guider, start = core_guider(core_model(kind)), latent_noise(2, 4, SIZE, SIZE)
    with pytest.raises(ValueError, match=said):
        drawn(guider, torch.tensor(values), sampler, start=start)


@pytest.mark.parametrize(
    ("method", "eta", "cfg"), [("ddpm", 0.0, 1.0), ("ddpm", 0.0, 3.0), ("ddim", 0.8, 3.0)]
)
def test_cfg_and_classifier_together(
    call, load_model, guided, wiring, classifiers, expected, adm_sigmas, method, eta, cfg
):
    """CFG moves the mean, and the variance stays the conditional one; DDIM draws noise, too."""
    model = load_model("conditional.safetensors")[0]
    (sampler,) = call("SamplerADM", method=method, eta=eta)
    got = drawn(wiring.guider(f"cfg {cfg:.0f}", guided(model)), adm_sigmas(), sampler)
    labels, guides = torch.tensor([1, 2]), [guide(classifiers[0], LABELS, SCALE)]
    options = {"cfg": cfg, "labels": labels, "method": method, "eta": eta}
    assert differ(got, expected(guides, "conditional", **options)) < 1e-4


def test_two_classifiers(unconditional, guided, wiring, ddpm, classifiers, expected, adm_sigmas):
    model = guided(guided(unconditional), scale=-1.0, label="1,2", which=1)
    got = drawn(wiring.guider("basic", model), adm_sigmas(), ddpm)
    guides = [guide(classifiers[0], LABELS, SCALE), guide(classifiers[1], [1, 2], -1.0)]
    assert differ(got, expected(guides)) < 1e-4
    assert differ(got, expected(guides[:1])) > 0.01


def test_split_runs_draw_from_their_own_seeds(
    unconditional, guided, wiring, ddpm, classifiers, expected, call_core, adm_sigmas
):
    """The second run starts its own draws, as core's ancestral samplers do."""
    high, low = call_core(SAMPLING, "SplitSigmas", sigmas=adm_sigmas("8"), step=4)
    guider = wiring.guider("basic", guided(unconditional))
    first = drawn(guider, high, ddpm, seed=5)
    got = drawn(guider, low, ddpm, first, start=torch.zeros_like(first), seed=6)
    sources, count = [draws(5), draws(6)], iter(range(8))
    whole = expected(
        [guide(classifiers[0], LABELS, SCALE)],
        respacing="8",
        noise=lambda x: sources[next(count) // 4](),
    )
    assert differ(got, whole) < 1e-4


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
    level, *rest = sigmas.tolist()
    # core starts a run with noise; here x is given
    denoised = evaluated(wiring.guider("basic", plain), x, level, start=noise(), rest=rest, **more)
    # at the first of its steps Differential Diffusion lets draw only what is fully masked
    where = (mask >= 1.0).float() if differential else mask
    gradient = SCALE * classifiers[0].gradient(x, sigmas[0], torch.tensor(LABELS))
    network = load_adm(files["diffusion_models"] / "unconditional.safetensors")
    v = network(x / (1 + sigmas[0] ** 2) ** 0.5, torch.full((2,), float(NOW)), None)[1]
    expected = step_by_hand(x, denoised, v, gradient, sigmas[:2], where)
    seen = []
    drawn(
        wiring.guider("basic", model),
        sigmas,
        ddpm,
        **more,
        callback=lambda step, x0, now, total: seen.append(now),
    )
    assert differ(seen[1], expected) < 1e-4
    unmasked = step_by_hand(x, denoised, v, gradient, sigmas[:2])
    assert differ(unmasked, expected) > 0.01


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_previews(call, call_core, unconditional, guided, wiring, classifiers, adm_sigmas, method):
    """The callback's x0 is what the step is built on.

    DDIM (algorithm 2) guides the denoised image, as core's samplers do. DDPM (algorithm 1) leaves
    it alone and shifts the mean: its x0 is the plain prediction, and the guided x is beside it.
    """
    sigmas = adm_sigmas("6")
    (sampler,) = call("SamplerADM", method=method, eta=0.0)
    seen = []
    out = drawn(
        wiring.guider("basic", guided(unconditional)),
        sigmas,
        sampler,
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
