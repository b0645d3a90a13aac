"""Recurrent Sampler around core's samplers."""

from __future__ import annotations

import itertools

import pytest
import torch
from library_runs import draws, guide, library_run, start_of
from long_cases import long_but
from mixture import distance, exact_samples
from sampler_runs import (
    core_guider,
    counted_calls,
    differ,
    drawn,
    few_sigmas,
    latent_noise,
    picture,
    sampler_named,
)

from guidance import load_classifier as library_classifier

UNFIT = ("dpm_fast", "dpm_adaptive", "uni_pc", "uni_pc_bh2")
KINDS = ("EPS", "V_PREDICTION", "EDM", "FLOW")
STEPS = 4
COUNT = 20_000


def sampler_names():
    """Core's samplers that can take single steps."""
    import comfy.samplers

    return [name for name in comfy.samplers.SAMPLER_NAMES if name not in UNFIT]


@pytest.fixture(scope="module")
def recurrent(call):
    """A SAMPLER with recurrence, over the whole run unless told otherwise."""

    def run(sampler, repeats=2, start=0.0, end=1.0):
        sampler = sampler_named(sampler) if isinstance(sampler, str) else sampler
        stretch = {"start_percent": start, "end_percent": end}
        return call("RecurrentSampler", sampler=sampler, repeats=repeats, **stretch)[0]

    return run


@pytest.fixture
def run(conditional, wiring):
    """The latents of a sampler."""
    return lambda sampler, **more: drawn(
        wiring.guider("cfg 3", conditional), few_sigmas(conditional, STEPS), sampler, **more
    )


def test_one_turn_is_the_sampler_alone_and_two_are_twice_the_steps(run, recurrent, conditional):
    for name in sampler_names():
        assert torch.equal(run(recurrent(name, 1)), run(name)), name
        shown: list[tuple] = []
        images = run(recurrent(name), callback=lambda *told, shown=shown: shown.append(told))
        assert images.isfinite().all(), name
        # the page's progress: a step, and of how many
        assert [told[0] for told in shown] == list(range(2 * STEPS)), name
        assert {told[-1] for told in shown} == {2 * STEPS}, name


def test_only_the_stretch_is_repeated(run, recurrent, conditional):
    images = counted_calls(conditional.model.diffusion_model)
    run("euler")
    plain = sum(images)
    images.clear()
    run(recurrent("euler", repeats=3, end=0.5))  # the first two of four steps
    assert sum(images) == plain * (2 * 3 + 2) / STEPS


@pytest.mark.parametrize("name", UNFIT)
def test_samplers_without_single_steps_are_refused(recurrent, name):
    with pytest.raises(ValueError, match=f"sampler is {name}, .*use another"):
        recurrent(name)


def test_a_stretch_without_steps_says_so(run, recurrent, caplog):
    assert torch.equal(run(recurrent("euler", start=0.45, end=0.46)), run("euler"))
    assert "repeats nothing" in caplog.text
    with pytest.raises(ValueError, match="start_percent is 0.5 and end_percent 0.5"):
        recurrent("euler", start=0.5, end=0.5)


def test_what_a_mask_keeps_is_kept(run, recurrent):
    mask = torch.zeros(2, 1, *picture().shape[-2:])
    mask[..., : mask.shape[-1] // 2] = 1
    images = run(recurrent("euler"), latent=picture(), mask=mask)
    assert differ(images * (1 - mask), picture() * (1 - mask)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "sampler"),
    long_but(
        [*((kind, "euler") for kind in KINDS), ("EPS", "euler_ancestral")],
        itertools.product(KINDS, ("euler", "heun", "euler_ancestral")),
    ),
)
def test_without_guidance_it_draws_the_models_own_distribution(
    recurrent, exact_model, say_at_the_end, kind, sampler
):
    model = exact_model(kind)
    sigmas = few_sigmas(model, 50, "simple" if kind == "FLOW" else "karras")
    start = latent_noise(COUNT, 2, 1, 1, seed=6)
    plain, repeated = (
        distance(
            drawn(core_guider(model), sigmas, one, start=start, seed=5).flatten(1),
            exact_samples(None, 2, COUNT),
        )
        for one in (sampler, recurrent(sampler))
    )
    say_at_the_end(f"sliced Wasserstein, {kind} {sampler}: {plain:.4f}, twice {repeated:.4f}")
    assert repeated <= plain + 0.01


@pytest.mark.parametrize(
    ("method", "eta"),
    long_but([("ddpm", 0.0), ("ddim", 1.0)], [("ddpm", 0.0), ("ddim", 1.0), ("ddim", 0.0)]),
    ids=str,
)
def test_it_equals_the_librarys_recurrence(
    call, load_model, load_classifier, label_of, steered, recurrent, root, method, eta
):
    """The included digits, guided: the same noise in each step, and the same put back."""
    digits, noisy = "digits_adm.safetensors", "digits_classifier.safetensors"
    model = load_model(digits, dtype="fp32")[0]
    guided = steered(model, load_classifier(noisy, dtype="fp32"), "0,3", 4.0)
    guider = core_guider(guided, positive=label_of(model, ""))
    sigmas = call("ADMScheduler", model=model, respacing="ddim10", denoise=1.0)[0]
    (sampler,) = call("SamplerADM", method=method, eta=eta)
    start = latent_noise(2, 3, 32, 32)
    got = drawn(guider, sigmas, recurrent(sampler, end=0.8), start=start)

    draw = draws(like=start)
    silent = method == "ddim" and eta == 0  # ADM Sampler draws nothing for its steps
    turn = itertools.count()

    def noise(x):
        is_put_back = next(turn) % 3 == 1
        return draw() if not silent or is_put_back else torch.zeros_like(x)

    options = {"method": method, "eta": eta, "noise": noise, "recurrence": 2}
    guides = [guide(library_classifier(root / "models" / "classifiers" / noisy), [0, 3], 4.0)]
    run = (root / "models" / "diffusion_models" / digits, start_of(sigmas, start), "ddim10")
    expected = library_run(*run, guides=guides, **options)
    assert differ(got, expected) < 1e-3
    assert differ(got, library_run(*run, guides=guides, **options | {"recurrence": 1})) > 0.1
