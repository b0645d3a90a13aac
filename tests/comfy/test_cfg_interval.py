"""CFG's term from the cache, in a real ComfyUI: with every guider and patch as if computed."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import (
    counted_calls,
    drawn,
    few_sigmas,
    latent_noise,
    noise,
)

STEPS = 8


@pytest.fixture(scope="module")
def run(call, wiring, scheduled):
    """Samples with CFG Scale Scheduler and a trace; (samples, what the trace saw)."""

    def sampled(model, kind="cfg 3", scale=4.0, steps=STEPS, sampler="euler", **cache):
        model, trace = call("GuidanceTrace", model=scheduled(model, scale, **cache))
        samples = drawn(wiring.guider(kind, model), few_sigmas(model, steps), sampler)
        return samples, trace.to_dict()

    return sampled


def test_forty_steps_in_fifty_passes(run, conditional):
    _, seen = run(conditional, steps=40, cfg_interval=4)
    assert (seen["passes"], seen["saved"]) == (50, 30)
    assert [one["passes"] for one in seen["evaluations"]] == [2, 1, 1, 1] * 10
    assert [one["saved"] for one in seen["evaluations"]] == [0, 1, 1, 1] * 10
    assert all(one["cfg"] == 4.0 for one in seen["evaluations"])


def test_tolerance_saves_passes_too(run, conditional):
    _, seen = run(conditional, steps=40, tolerance=0.5)
    assert seen["passes"] + seen["saved"] == 80 and 45 <= seen["passes"] < 70


def test_interval_1_changes_nothing(run, conditional):
    plain, _ = run(conditional)
    assert torch.equal(plain, run(conditional, cfg_interval=1, tolerance=0.0)[0])
    assert not torch.equal(plain, run(conditional, cfg_interval=3)[0])


@pytest.mark.parametrize("sampler", ["euler", "ddpm of the pack", "copies its options"])
@pytest.mark.parametrize(
    ("cache", "low", "high"),
    [({"cfg_interval": 4}, 10, 10), ({"tolerance": 0.5}, 9, 14), ({}, 16, 16)],
    ids=str,
)
def test_passes_at_the_network(
    sampler_of, wiring, load_model, scheduled, sampler, cache, low, high
):
    """Conditionings that the diffusion network computes in 8 steps, whoever samples."""
    model = scheduled(load_model("conditional.safetensors")[0], 4.0, **cache)
    images = counted_calls(model.model.diffusion_model)
    drawn(wiring.guider("cfg 3", model), few_sigmas(model, STEPS), sampler_of(sampler))
    assert low <= sum(images) / 2 <= high


def test_it_is_nearer_to_full_cfg_than_half_an_interval(call, wiring, load_model, made, scheduled):
    """On the digits' model, with fewer passes."""
    model, _ = load_model("digits_adm.safetensors", dtype="fp32")
    half = made("interval", axis="step", start=0.0, end=0.5, scale=4.0)

    def run(schedule, **cache):
        each, trace = call("GuidanceTrace", model=scheduled(model, schedule, **cache))
        guider = wiring.guider("cfg 3", each, first="0,2,4,6")
        samples = drawn(guider, few_sigmas(each, 40), start=noise(4, 32))
        return samples, trace.to_dict()["passes"]

    (full, most), (partial, more) = run(4.0), run(half)
    assert (most, more) == (80, 60)
    for cache in ({"cfg_interval": 3}, {"tolerance": 0.5}):
        cached, passes = run(4.0, **cache)
        assert passes < 60
        assert (cached - full).square().mean() < (partial - full).square().mean()


@pytest.mark.parametrize("patch", ["RescaleCFG", "APG", "CFGZeroStar", "TCFG", "Mahiro"])
def test_with_cores_cfg_patches(run, wiring, conditional, patch):
    """They get an uncond in each evaluation, computed or made of the cached term."""
    samples, seen = run(wiring.patched(patch, conditional), cfg_interval=2)
    assert seen["passes"] == STEPS + STEPS // 2
    assert bool(samples.isfinite().all())
    assert not torch.equal(samples, run(conditional, cfg_interval=2)[0])


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde", "dpm_adaptive", "euler_ancestral"])
def test_evaluations_count_and_not_steps(run, conditional, sampler):
    _, seen = run(conditional, sampler=sampler, cfg_interval=4)
    count = len(seen["evaluations"])
    assert seen["passes"] == count + -(-count // 4)


@pytest.mark.parametrize("kind", ["areas", "masks"])
def test_with_regions(run, conditional, kind):
    samples, seen = run(conditional, kind=kind, cfg_interval=4)
    assert seen["saved"] > 0 and bool(samples.isfinite().all())


def test_the_packs_guider_has_it_too(call, wiring, conditional):
    model, trace = call("GuidanceTrace", model=conditional)
    inputs = {"cfg": 4.0, "cfg_interval": 4, **wiring.pair(model)}
    drawn(call("ClassifierFreeGuidance", model=model, **inputs)[0], few_sigmas(model, STEPS))
    assert trace.to_dict()["passes"] == STEPS + STEPS // 4


@pytest.mark.parametrize("kind", ["FLOW", "V_PREDICTION"])
def test_on_other_models(call, core_model, kind):
    """A flow model begins at alpha 0."""
    model, text = core_model(kind), [[torch.zeros(1, 1, 1), {}]]
    inputs = {"positive": text, "negative": text, "cfg": 4.0, "cfg_interval": 2}
    (guider,) = call("ClassifierFreeGuidance", model=model, **inputs)
    out = drawn(guider, few_sigmas(model), start=latent_noise(1, 4, 8, 8))
    assert bool(out.isfinite().all())
