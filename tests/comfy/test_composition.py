"""Classifier Guidance together with everything of core that shapes a sampling run.

Most of it comes down to one equation at one evaluation, whatever shaped the denoised image:
guided = plain + sigma^2 / alpha * scale * grad log p(label | x). The runs then show that the class
is followed.
"""

from __future__ import annotations

import pytest
import torch
from core_guiders import GUIDERS, PATCHES, SAMPLING, region
from mixture_model import Mixture
from sampler_runs import SEED, evaluated, few_sigmas, noise, picture, sampler_named, with_guider
from tiny_models import SIZE

from guidance import NoisyClassifier, load_adm
from guidance.sampling.classifier_guidance import classifier_term
from guidance.sampling.loop import Guide, chain, sample
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.strength import Strength

LABELS = [0, 3]
SCALE = 2.0
FILE_SCALE = 100.0  # a random network's gradients are small
SIGMA = 3.0


@pytest.fixture(scope="module")
def classifiers(place_classifier, load_classifier):
    """NOISY_CLASSIFIERs: two that images can be steered by, and one as a file gives it."""
    first, second = (place_classifier(Mixture(seed)) for seed in (0, 1))
    return {"first": first, "second": second, "file": load_classifier("any_size.safetensors")}


@pytest.fixture(scope="module")
def library():
    """The first two, without ComfyUI."""
    labels = [f"class {index}" for index in range(4)]
    return {
        name: NoisyClassifier(Mixture(seed), "linear", labels)
        for seed, name in enumerate(("first", "second"))
    }


@pytest.fixture(scope="module")
def guided(call, classifiers):
    """The MODEL with Classifier Guidance."""

    def run(model, scale=SCALE, label="0,3", which="first", **options):
        inputs = {"model": model, "classifier": classifiers[which], "label": label}
        return call("ClassifierGuidance", **inputs, scale=scale, **options)[0]

    return run


def masked_middle(inside=1.0):
    """Where the model may draw: a square in the middle."""
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 4:12, 4:12] = inside
    return mask


def term_of(classifier, x, denoised, sigma=SIGMA, labels=LABELS, scale=SCALE):
    """What the library says that guidance adds."""
    return classifier_term(
        classifier, x, denoised, sigma, torch.tensor(labels), Strength(scale=scale)
    )


def opinion(classifier, images, labels=LABELS):
    """log p(label | image) of each finished image."""
    return classifier.log_probs(images, 0.0)[range(len(images)), labels]


def differ(a, b):
    return (a - b).abs().max().item()


# --- one evaluation: guidance comes last, and unscaled ---------------------------------------


def assert_term_is_added(guider, steered, library, scale=SCALE):
    x = SIGMA * noise()
    plain = evaluated(guider, x, SIGMA)
    term = term_of(library["first"], x, plain, scale=scale)
    assert term.abs().max() > 0.1
    assert differ(evaluated(steered, x, SIGMA), plain + term) < 1e-5


@pytest.mark.parametrize("kind", GUIDERS)
def test_every_guider_adds_the_same_term(conditional, guided, wiring, library, kind):
    """After its own arithmetic, not scaled by any of its cfgs, not clipped."""
    guiders = (wiring.guider(kind, model) for model in (conditional, guided(conditional)))
    assert_term_is_added(*guiders, library)


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize("first", [True, False], ids=["patch first", "guidance first"])
def test_every_patch_comes_before_guidance(conditional, guided, wiring, library, name, first):
    """Whichever node stands first in the graph."""
    both = (
        guided(wiring.patched(name, conditional))
        if first
        else wiring.patched(name, guided(conditional))
    )
    plain = wiring.guider("cfg 3 against", wiring.patched(name, conditional))
    assert_term_is_added(plain, wiring.guider("cfg 3 against", both), library)
    x = SIGMA * noise()
    untouched = evaluated(wiring.guider("cfg 3 against", conditional), x, SIGMA)
    assert differ(evaluated(plain, x, SIGMA), untouched) > 1e-4


def test_order_of_rescale_cfg_clipping_and_guidance(
    conditional, unclipped, guided, wiring, library
):
    """RescaleCFG takes the place of CFG; its result is clipped to -1..1; then comes guidance."""
    x = SIGMA * noise()
    cond, uncond = (evaluated(wiring.guider(k, unclipped), x, SIGMA) for k in ("cfg 1", "cfg 0"))
    # Lin et al. 2023, on the v prediction: v = (x / (1 + sigma^2) - denoised) / its factor
    factor = SIGMA / (1 + SIGMA**2) ** 0.5
    v_cond, v_uncond = ((x / (1 + SIGMA**2) - d) / factor for d in (cond, uncond))
    v_cfg = v_uncond + 3.0 * (v_cond - v_uncond)
    spread = [v.std(dim=(1, 2, 3), keepdim=True) for v in (v_cond, v_cfg)]
    v = 0.7 * v_cfg * spread[0] / spread[1] + 0.3 * v_cfg
    denoised = x / (1 + SIGMA**2) - v * factor
    assert denoised.abs().max() > 1.02  # else nothing would be clipped
    plain = evaluated(wiring.guider("cfg 3", wiring.patched("RescaleCFG", conditional)), x, SIGMA)
    assert differ(plain, denoised.clamp(-1, 1)) < 1e-5
    steered = wiring.guider("cfg 3", guided(wiring.patched("RescaleCFG", conditional)))
    expected = denoised.clamp(-1, 1) + term_of(library["first"], x, plain)
    assert differ(evaluated(steered, x, SIGMA), expected) < 1e-5
    assert expected.abs().max() > 1.02


def test_perp_neg_and_dual_cfg_by_hand(conditional, unclipped, guided, wiring, library):
    x = SIGMA * noise()
    pos, mid = (evaluated(wiring.guider("basic", unclipped, y), x, SIGMA) for y in ("1,2", "2,0"))
    none = evaluated(wiring.guider("cfg 0", unclipped), x, SIGMA)
    towards, away = pos - none, mid - none
    away = away - (away * towards).sum() / towards.norm() ** 2 * towards
    plain = {
        "perp-neg": none + 3.0 * (towards - 0.7 * away),
        "dual": none + 2.0 * (mid - none) + 3.0 * (pos - mid),
        "nested dual": none + 1.5 * (mid + 1.5 * (pos - mid) - none),
    }
    term = term_of(library["first"], x, pos)
    for kind, expected in plain.items():
        steered = evaluated(wiring.guider(kind, guided(unclipped)), x, SIGMA)
        assert differ(steered, expected + term) < 2e-5, kind


def test_regions_by_hand(unclipped, guided, wiring, library):
    """Two labels, each in its part of the image; the classifier looks at the whole of it."""
    x = SIGMA * noise()

    def drawn(where, label=None):
        guider = wiring.guider("cfg 0" if label is None else "basic", unclipped, label or "1,2")
        return evaluated(guider, where, SIGMA)

    none, halves = drawn(x), x.split(SIZE // 2, dim=3)
    # core adds the negative of each area to that of the whole, with a soft inner edge
    edge = torch.ones(SIZE // 2)
    edge[-1] = 0.5
    weight = torch.cat([edge, edge.flip(0)])
    inner = torch.cat([drawn(half) for half in halves], dim=3)
    cases = {
        "masks": (region() * drawn(x, "1") + (1 - region()) * drawn(x, "3"), none),
        "areas": (
            torch.cat([drawn(half, y) for half, y in zip(halves, "13", strict=True)], dim=3),
            (none + weight * inner) / (1 + weight),
        ),
    }
    for kind, (positive, negative) in cases.items():
        expected = negative + 3.0 * (positive - negative) + term_of(library["first"], x, none)
        steered = evaluated(wiring.guider(kind, guided(unclipped)), x, SIGMA)
        assert differ(steered, expected) < 2e-5, kind


def test_no_cfg_patch_sees_guidance(conditional, guided, wiring):
    """A post-CFG patch gets the plain denoised image, so it cannot scale or clip guidance."""
    seen = []

    def watching(model):
        model = model.clone()
        model.set_model_sampler_post_cfg_function(
            lambda args: seen.append(args["denoised"]) or args["denoised"]
        )
        return wiring.guider("cfg 3", model)

    x = SIGMA * noise()
    for model in (conditional, guided(conditional)):
        evaluated(watching(model), x, SIGMA)
    assert len(seen) == 2
    assert torch.equal(*seen)


# --- several classifiers, several labels, signs ----------------------------------------------


def test_two_classifiers_add_up(unconditional, guided, wiring, library):
    x = SIGMA * noise()
    plain = evaluated(wiring.guider("basic", unconditional), x, SIGMA)
    one = guided(unconditional, scale=1.5, label="0,3")
    both = guided(one, scale=-1.0, label="1,2", which="second")
    terms = term_of(library["first"], x, plain, scale=1.5)
    terms = terms + term_of(library["second"], x, plain, labels=[1, 2], scale=-1.0)
    assert differ(evaluated(wiring.guider("basic", both), x, SIGMA), plain + terms) < 1e-5
    assert differ(terms, term_of(library["first"], x, plain, scale=1.5)) > 0.1


@pytest.mark.parametrize("sampler", ["euler", "ddpm of the pack"])
def test_order_of_two_classifiers_does_not_matter(call, unconditional, guided, wiring, sampler):
    settings = [{"scale": 1.5, "label": "0,3"}, {"scale": 2.0, "label": "1,2", "which": "second"}]
    outs = []
    for order in (settings, settings[::-1]):
        model = unconditional
        for options in order:
            model = guided(model, **options)
        chosen = pack_or_core(call, sampler)
        outs.append(with_guider(wiring.guider("basic", model), chosen, few_sigmas(model, 6)))
    assert differ(*outs) < 1e-4
    alone = with_guider(
        wiring.guider("basic", guided(unconditional, **settings[0])),
        pack_or_core(call, sampler),
        few_sigmas(unconditional, 6),
    )
    assert differ(alone, outs[0]) > 0.05


def pack_or_core(call, sampler, eta=0.0):
    if sampler.endswith("of the pack"):
        return call("SamplerADM", method=sampler[:4], eta=eta)[0]
    return sampler_named(sampler)


@pytest.mark.parametrize("kind", ["basic", "cfg 3", "perp-neg"])
def test_negative_scale_steers_away(conditional, guided, wiring, library, kind):
    """The more, the further: the class loses in each image."""
    sigmas = few_sigmas(conditional, 8)
    away, plain, towards = (
        opinion(
            library["first"],
            with_guider(
                wiring.guider(kind, guided(conditional, scale=scale)),
                sampler_named("euler"),
                sigmas,
            ),
        )
        for scale in (-SCALE, 0.0, SCALE)
    )
    assert (away < plain).all()
    assert (plain < towards).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"entropy_limit": 4.0}, {"cap": 0.2}, {"label_smoothing": 0.3}],
    ids=["plain", "entropy", "cap", "smoothing"],
)
def test_one_label_per_image(conditional, guided, wiring, options):
    """Each image is as if drawn alone with its labels, and follows its image when permuted."""
    drawn, asked = [2, 0, 1, 2], [0, 3, 1, 2]
    sigmas = few_sigmas(conditional, 6)

    def run(order):
        classes, labels = (",".join(str(v[i]) for i in order) for v in (drawn, asked))
        model = guided(conditional, FILE_SCALE, labels, "file", **options)
        guider = wiring.guider("basic", model, first=classes)
        return with_guider(guider, sampler_named("euler"), sigmas, start=noise(4)[order])

    whole = run([0, 1, 2, 3])
    for index in range(4):
        # sums of one and of four images round otherwise, and FILE_SCALE enlarges it: 1.02e-5 was
        # seen; a label at another place is 0.05 and more, below
        assert differ(run([index]), whole[[index]]) < 2e-5
    assert torch.equal(run([2, 0, 3, 1]), whole[[2, 0, 3, 1]])
    # and the labels are what makes the difference
    asked = [0, 0, 1, 2]
    other = run([0, 1, 2, 3])
    assert torch.equal(other[[0, 2, 3]], whole[[0, 2, 3]])
    assert differ(other[1], whole[1]) > 0.05


def test_one_label_is_for_all_images(unconditional, guided, wiring):
    sigmas = few_sigmas(unconditional, 4)
    one, each = (
        with_guider(
            wiring.guider("basic", guided(unconditional, label=label)),
            sampler_named("euler"),
            sigmas,
        )
        for label in ("2", "2,2")
    )
    assert torch.equal(one, each)


# --- whole runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [*GUIDERS, *PATCHES, "inpainting", "image to image", "both"])
def test_runs_follow_the_class(conditional, guided, wiring, library, setting):
    sigmas, more = few_sigmas(conditional, 6), {}
    if setting in ("inpainting", "both"):
        more |= {"latent": picture(), "mask": masked_middle()}
    if setting in ("image to image", "both"):
        sigmas, more = few_sigmas(conditional, 12)[-7:], more | {"latent": picture()}

    def run(model):
        if setting in PATCHES:
            model = wiring.patched(setting, model)
        guider = wiring.guider(setting if setting in GUIDERS else "cfg 3", model)
        return with_guider(guider, sampler_named("euler"), sigmas, **more)

    plain, off, steered = (
        run(model) for model in (conditional, guided(conditional, scale=0.0), guided(conditional))
    )
    assert torch.isfinite(steered).all()
    assert torch.equal(off, plain)
    assert (opinion(library["first"], steered) > opinion(library["first"], plain)).all()


@pytest.mark.parametrize("kind", GUIDERS)
def test_sampler_custom_advanced_takes_every_guider(
    conditional, guided, wiring, call_core, library, kind
):
    """Its second output is the last denoised image, the same as the first at sigma 0."""
    (noisy,) = call_core(SAMPLING, "RandomNoise", noise_seed=7)
    run = {"noise": noisy, "sampler": sampler_named("euler")}
    run |= {"latent_image": {"samples": torch.zeros(2, 3, SIZE, SIZE)}}
    images = []
    for model in (conditional, guided(conditional)):
        run |= {"guider": wiring.guider(kind, model), "sigmas": few_sigmas(model, 6)}
        outputs = call_core(SAMPLING, "SamplerCustomAdvanced", **run)
        last, denoised = (latent["samples"] for latent in outputs)
        assert differ(last, denoised) < 1e-5 * last.abs().max()
        images.append(last)
    plain, steered = (opinion(library["first"], image) for image in images)
    assert (steered > plain).all()


def test_the_core_nodes_draw_the_same_image(conditional, guided, wiring, call_core, label_of):
    """KSampler, KSamplerAdvanced, SamplerCustom and SamplerCustomAdvanced, bit for bit."""
    model = guided(conditional)
    pair = {"positive": label_of(model, "1,2"), "negative": label_of(model, "")}
    latent = {"samples": torch.zeros(2, 3, SIZE, SIZE)}
    named = {"model": model, **pair, "steps": 4, "sampler_name": "euler", "scheduler": "normal"}
    custom = {"sampler": sampler_named("euler"), "sigmas": few_sigmas(model, 4)}
    (noisy,) = call_core(SAMPLING, "RandomNoise", noise_seed=7)
    runs = [
        call_core("nodes", "KSampler", **named, seed=7, cfg=3.0, latent_image=latent, denoise=1.0),
        call_core(
            "nodes",
            "KSamplerAdvanced",
            **named,
            add_noise="enable",
            noise_seed=7,
            cfg=3.0,
            latent_image=latent,
            start_at_step=0,
            end_at_step=10000,
            return_with_leftover_noise="disable",
        ),
        call_core(
            SAMPLING,
            "SamplerCustom",
            model=model,
            **pair,
            **custom,
            add_noise=True,
            noise_seed=7,
            cfg=3.0,
            latent_image=latent,
        ),
        *(
            call_core(
                SAMPLING,
                "SamplerCustomAdvanced",
                noise=noisy,
                guider=wiring.guider(kind, model),
                **custom,
                latent_image=latent,
            )
            for kind in ("cfg 3", "cfg of the pack")
        ),
    ]
    images = [run[0]["samples"] for run in runs]
    for image in images[1:]:
        assert torch.equal(image, images[0])
    plain = {**named, "model": conditional, "seed": 7, "cfg": 3.0, "denoise": 1.0}
    (unguided,) = call_core("nodes", "KSampler", **plain, latent_image=latent)
    assert differ(unguided["samples"], images[0]) > 0.05


def euler_by_hand(guider, library, x, sigmas):
    """Euler's steps from plain evaluations and the library's term."""
    for sigma, following in zip(sigmas.tolist(), sigmas.tolist()[1:], strict=False):
        plain = evaluated(guider, x, sigma)
        denoised = plain + term_of(library["first"], x, plain, sigma)
        x = denoised + following / sigma * (x - denoised)
    return x


def test_image_to_image_of_the_ksampler(conditional, guided, wiring, library, call_core, label_of):
    """denoise 0.5: the last steps of twice as many, from the noised picture."""
    import comfy.sample

    model = guided(conditional)
    pair = {"positive": label_of(model, "1,2"), "negative": label_of(model, "")}
    named = {"model": model, **pair, "steps": 4, "sampler_name": "euler", "scheduler": "normal"}
    named |= {"seed": 7, "cfg": 3.0, "latent_image": {"samples": picture()}, "denoise": 0.5}
    (out,) = call_core("nodes", "KSampler", **named)
    sigmas = few_sigmas(conditional, 8)[-5:]
    x = picture() + sigmas[0] * comfy.sample.prepare_noise(picture(), 7)
    expected = euler_by_hand(wiring.guider("cfg 3", conditional), library, x, sigmas)
    assert differ(out["samples"], expected) < 1e-4
    assert (out["samples"] - picture()).abs().mean() < (x - picture()).abs().mean()


@pytest.mark.parametrize("method", ["euler", "ddim", "ddpm"])
def test_image_to_image_of_adm_scheduler(
    call, unconditional, guided, wiring, library, files, method
):
    """denoise 0.4 of ddim25: the library's last ten steps, from the noised picture."""
    import comfy.k_diffusion.sampling as k_sampling

    model = guided(unconditional)
    (sigmas,) = call("ADMScheduler", model=model, respacing="ddim25", denoise=0.4)
    assert len(sigmas) == 11
    sampler = pack_or_core(call, method if method == "euler" else f"{method} of the pack")
    got = with_guider(wiring.guider("basic", model), sampler, sigmas, picture())
    diffusion = load_adm(files["diffusion_models"] / "unconditional.safetensors")
    steps = chain(diffusion.schedule.alpha_bar.tolist(), respaced_timesteps("ddim25"))[-10:]
    draw = k_sampling.default_noise_sampler(noise(), seed=SEED)
    expected = sample(
        diffusion,
        (picture() + sigmas[0] * noise()) / (1 + sigmas[0] ** 2) ** 0.5,
        steps,
        method="ddpm" if method == "ddpm" else "ddim",
        guides=[Guide(library["first"], torch.tensor(LABELS), SCALE)],
        noise=lambda x: draw(None, None),
    )
    assert differ(got, expected) < 1e-4


# --- inpainting ------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [1.0, 0.6], ids=["hard", "soft"])
def test_inpainting_by_hand(unconditional, guided, wiring, library, inside):
    """Outside is the given picture with its noise; guidance reads all of it, and draws inside."""
    mask, given, x = masked_middle(inside), picture(), SIGMA * noise() + 0.3
    composed = mask * x + (1 - mask) * (given + SIGMA * noise())
    plain = evaluated(wiring.guider("basic", unconditional), composed, SIGMA)
    expected = mask * (plain + term_of(library["first"], composed, plain)) + (1 - mask) * given
    more = {"latent": given, "mask": mask, "start": noise()}
    got = evaluated(wiring.guider("basic", guided(unconditional)), x, SIGMA, **more)
    assert differ(got, expected) < 1e-5


@pytest.mark.parametrize(
    "sampler",
    ["euler", "heun", "dpmpp_2m_sde", "er_sde", "uni_pc", "ddpm of the pack", "ddim of the pack"],
)
def test_inpainting_keeps_what_is_masked_out(call, unconditional, guided, wiring, sampler):
    """Also with a scale that pushes hard, at the last step as well."""
    model = guided(unconditional, scale=60.0)
    (sigmas,) = call("ADMScheduler", model=model, respacing="8", denoise=1.0)
    mask, given, chosen = masked_middle(), picture(), pack_or_core(call, sampler)
    out, plain = (
        with_guider(wiring.guider("basic", m), chosen, sigmas, given, mask)
        for m in (model, unconditional)
    )
    kept = mask.expand_as(out) == 0
    assert differ(out[kept], plain[kept]) < 1e-5
    # core's uni_pc stops at sigma 0.001, with that much noise left
    assert differ(out[kept], given[kept]) < (5e-3 if sampler == "uni_pc" else 1e-5)
    assert (out - plain)[~kept].abs().mean() > 0.1


# --- split runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "euler_cfg_pp", "ddim of the pack"])
def test_split_runs_go_on_where_the_first_ended(
    call, call_core, conditional, guided, wiring, sampler
):
    """Two runs draw what one draws, with samplers that neither draw noise nor look back."""
    guider = wiring.guider("cfg 3", guided(conditional, FILE_SCALE, which="file"))
    chosen = pack_or_core(call, sampler)
    (sigmas,) = call("ADMScheduler", model=conditional, respacing="8", denoise=1.0)
    high, low = call_core(SAMPLING, "SplitSigmas", sigmas=sigmas, step=2)
    first = with_guider(guider, chosen, high)
    second = with_guider(guider, chosen, low, first, start=torch.zeros_like(first))
    whole = with_guider(guider, chosen, sigmas)
    assert differ(second, whole) < 1e-5
    # the second run must be guided, too
    plain = wiring.guider("cfg 3", conditional)
    unguided = with_guider(plain, chosen, low, first, start=torch.zeros_like(first))
    assert differ(unguided, whole) > 0.01
    # splitting after the last step leaves a run without steps
    (_, end) = call_core(SAMPLING, "SplitSigmas", sigmas=sigmas, step=8)
    assert len(end) == 1
    assert torch.equal(with_guider(guider, chosen, end, second, start=0 * second), second)


def test_advanced_ksamplers_in_a_row(conditional, guided, call_core, label_of):
    """Steps 0..3 with the noise left over, then 3..6 without new noise."""
    model = guided(conditional)
    pair = {"positive": label_of(model, "1,2"), "negative": label_of(model, "")}
    named = {"model": model, **pair, "steps": 6, "sampler_name": "euler", "scheduler": "normal"}

    def run(latent, start, end, fresh):
        return call_core(
            "nodes",
            "KSamplerAdvanced",
            **named,
            add_noise="enable" if fresh else "disable",
            noise_seed=7,
            cfg=3.0,
            latent_image=latent,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise="enable" if end < 6 else "disable",
        )[0]

    empty = {"samples": torch.zeros(2, 3, SIZE, SIZE)}
    split = run(run(empty, 0, 3, True), 3, 6, False)
    assert differ(split["samples"], run(empty, 0, 6, True)["samples"]) < 1e-5
