"""Classifier Guidance together with everything of core that shapes a sampling run.

Most of it comes down to one equation at one evaluation, whatever shaped the denoised image:
guided = plain + sigma^2 / alpha * scale * grad log p(label | x). The runs then show that the class
is followed.
"""

from __future__ import annotations

import pytest
import torch
from core_guiders import GUIDERS, PATCHES, SAMPLING, region
from library_runs import draws, guide, library_run, mixture_classifier, start_of, term_of
from sampler_runs import differ, drawn, evaluated, few_sigmas, noise, picture
from tiny_models import SIZE

LABELS = [0, 3]
SCALE = 2.0
FILE_SCALE = 100.0  # a random network's gradients are small
SIGMA = 3.0


@pytest.fixture(scope="module")
def library():
    """The classifier that steers, without ComfyUI."""
    return mixture_classifier(0)


@pytest.fixture(scope="module")
def guided(steered, mixtures):
    """The MODEL with Classifier Guidance."""
    return lambda model, scale=SCALE: steered(model, mixtures[0], "0,3", scale)


def masked_middle(inside=1.0):
    """Where the model may draw: a square in the middle."""
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., 4:12, 4:12] = inside
    return mask


def term(library, x, denoised, sigma=SIGMA):
    """What the library says that guidance adds."""
    return term_of(library, x, denoised, sigma, LABELS, SCALE)


def assert_term_is_added(guider, steered, library):
    x = SIGMA * noise()
    plain = evaluated(guider, x, SIGMA)
    added = term(library, x, plain)
    assert added.abs().max() > 0.1
    assert differ(evaluated(steered, x, SIGMA), plain + added) < 1e-5


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
    expected = denoised.clamp(-1, 1) + term(library, x, plain)
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
    added = term(library, x, pos)
    for kind, expected in plain.items():
        steered = evaluated(wiring.guider(kind, guided(unclipped)), x, SIGMA)
        assert differ(steered, expected + added) < 2e-5, kind


def test_regions_by_hand(unclipped, guided, wiring, library):
    """Two labels, each in its part of the image; the classifier looks at the whole of it."""
    x = SIGMA * noise()

    def predicted(where, label=None):
        guider = wiring.guider("cfg 0" if label is None else "basic", unclipped, label or "1,2")
        return evaluated(guider, where, SIGMA)

    none, halves = predicted(x), x.split(SIZE // 2, dim=3)
    # core adds the negative of each area to that of the whole, with a soft inner edge
    edge = torch.ones(SIZE // 2)
    edge[-1] = 0.5
    weight = torch.cat([edge, edge.flip(0)])
    inner = torch.cat([predicted(half) for half in halves], dim=3)
    cases = {
        "masks": (region() * predicted(x, "1") + (1 - region()) * predicted(x, "3"), none),
        "areas": (
            torch.cat([predicted(half, y) for half, y in zip(halves, "13", strict=True)], dim=3),
            (none + weight * inner) / (1 + weight),
        ),
    }
    for kind, (positive, negative) in cases.items():
        expected = negative + 3.0 * (positive - negative) + term(library, x, none)
        steered = evaluated(wiring.guider(kind, guided(unclipped)), x, SIGMA)
        assert differ(steered, expected) < 2e-5, kind


@pytest.mark.parametrize(
    "options",
    [{}, {"entropy_limit": 4.0}, {"cap": 0.2}, {"label_smoothing": 0.3}],
    ids=["plain", "entropy", "cap", "smoothing"],
)
def test_one_label_per_image(conditional, steered, load_classifier, wiring, options):
    """Each image is as if drawn alone with its labels, and follows its image when permuted."""
    classes, wanted = [2, 0, 1, 2], [0, 3, 1, 2]
    sigmas = few_sigmas(conditional, 6)

    def run(order):
        first, labels = (",".join(str(v[i]) for i in order) for v in (classes, wanted))
        model = steered(conditional, load_classifier(), labels, FILE_SCALE, **options)
        return drawn(wiring.guider("basic", model, first), sigmas, start=noise(4)[order])

    whole = run([0, 1, 2, 3])
    for index in range(4):
        # sums of one and of four images round otherwise, and FILE_SCALE enlarges it: 1.02e-5 was
        # seen; a label at another place is 0.05 and more, below
        assert differ(run([index]), whole[[index]]) < 2e-5
    assert torch.equal(run([2, 0, 3, 1]), whole[[2, 0, 3, 1]])
    # and the labels are what makes the difference
    wanted = [0, 0, 1, 2]
    other = run([0, 1, 2, 3])
    assert torch.equal(other[[0, 2, 3]], whole[[0, 2, 3]])
    assert differ(other[1], whole[1]) > 0.05


def test_the_core_nodes_draw_the_same_image(conditional, guided, wiring, call_core):
    """KSampler, KSamplerAdvanced, SamplerCustom and SamplerCustomAdvanced, bit for bit."""
    import comfy.samplers

    model, latent = guided(conditional), {"samples": torch.zeros(2, 3, SIZE, SIZE)}
    custom = {"sampler": comfy.samplers.sampler_object("euler"), "sigmas": few_sigmas(model)}
    custom |= {"latent_image": latent}
    (noisy,) = call_core(SAMPLING, "RandomNoise", noise_seed=7)
    pair, seeded = wiring.pair(model), {"add_noise": True, "noise_seed": 7, "cfg": 3.0}
    runs = [
        wiring.ksampler(model, latent, seed=7),
        wiring.ksampler_advanced(model, latent),
        call_core(SAMPLING, "SamplerCustom", model=model, **seeded, **pair, **custom)[0],
    ]
    for kind in ("cfg 3", "cfg of the pack"):
        guider = wiring.guider(kind, model)
        outputs = call_core(SAMPLING, "SamplerCustomAdvanced", noise=noisy, guider=guider, **custom)
        runs.append(outputs[0])
        # the second output is the last denoised image, the same at sigma 0
        assert differ(outputs[0]["samples"], outputs[1]["samples"]) < 1e-5
    for run in runs[1:]:
        assert torch.equal(run["samples"], runs[0]["samples"])
    unguided = wiring.ksampler(conditional, latent, seed=7)
    assert differ(unguided["samples"], runs[0]["samples"]) > 0.05


@pytest.mark.parametrize("method", ["euler", "ddim", "ddpm"])
def test_image_to_image_of_adm_scheduler(
    adm_sigmas, unconditional, guided, wiring, library, files, sampler_of, method
):
    """denoise 0.4 of ddim25: the library's last ten steps, from the noised picture."""
    model = guided(unconditional)
    sigmas = adm_sigmas("ddim25", 0.4)
    assert len(sigmas) == 11
    sampler = sampler_of(method if method == "euler" else f"{method} of the pack")
    got = drawn(wiring.guider("basic", model), sigmas, sampler, picture())
    expected = library_run(
        files["diffusion_models"] / "unconditional.safetensors",
        start_of(sigmas, picture() / sigmas[0] + noise()),
        last=10,
        method="ddpm" if method == "ddpm" else "ddim",
        guides=[guide(library, LABELS, SCALE)],
        noise=draws(),
    )
    assert differ(got, expected) < 1e-4


@pytest.mark.parametrize("inside", [1.0, 0.6], ids=["hard", "soft"])
def test_inpainting_by_hand(unconditional, guided, wiring, library, inside):
    """Outside is the given picture with its noise; guidance reads all of it, and draws inside."""
    mask, given, x = masked_middle(inside), picture(), SIGMA * noise() + 0.3
    composed = mask * x + (1 - mask) * (given + SIGMA * noise())
    plain = evaluated(wiring.guider("basic", unconditional), composed, SIGMA)
    expected = mask * (plain + term(library, composed, plain)) + (1 - mask) * given
    more = {"latent": given, "mask": mask, "start": noise()}
    got = evaluated(wiring.guider("basic", guided(unconditional)), x, SIGMA, **more)
    assert differ(got, expected) < 1e-5


@pytest.mark.parametrize(
    "sampler",
    ["euler", "heun", "dpmpp_2m_sde", "er_sde", "uni_pc", "ddpm of the pack", "ddim of the pack"],
)
def test_inpainting_keeps_what_is_masked_out(
    adm_sigmas, unconditional, guided, wiring, sampler_of, sampler
):
    """Also with a scale that pushes hard, at the last step as well."""
    model = guided(unconditional, scale=60.0)
    sigmas = adm_sigmas("8")
    mask, given = masked_middle(), picture()
    out, plain = (
        drawn(wiring.guider("basic", m), sigmas, sampler_of(sampler), given, mask)
        for m in (model, unconditional)
    )
    kept = mask.expand_as(out) == 0
    assert differ(out[kept], plain[kept]) < 1e-5
    # core's uni_pc stops at sigma 0.001, with that much noise left
    assert differ(out[kept], given[kept]) < (5e-3 if sampler == "uni_pc" else 1e-5)
    assert (out - plain)[~kept].abs().mean() > 0.1
