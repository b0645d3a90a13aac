"""CFG's term used again, in a real ComfyUI: with every guider and patch as if it were computed."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import few_sigmas, noise, sampler_named, with_guider

STEPS = 8


@pytest.fixture(scope="module")
def constant(pack_module):
    """A schedule of one scale."""
    return pack_module("guidance").GuidanceSchedule.constant


@pytest.fixture(scope="module")
def run(call, wiring, constant):
    """Samples with CFG Scale Scheduler and a trace; (samples, what the trace saw)."""

    def sampled(model, kind="cfg 3", scale=4.0, steps=STEPS, sampler="euler", **reuse):
        inputs = {"schedule": constant(scale), **reuse}
        (model,) = call("CFGScaleScheduler", model=model, **inputs)
        model, trace = call("GuidanceTrace", model=model)
        guider = wiring.guider(kind, model)
        samples = with_guider(guider, sampler_named(sampler), few_sigmas(model, steps))
        return samples, trace.to_dict()

    return sampled


def test_forty_steps_in_fifty_passes(run, conditional):
    _, seen = run(conditional, steps=40, every=4)
    assert (seen["passes"], seen["saved"]) == (50, 30)
    passes = [one["passes"] for one in seen["evaluations"]]
    assert passes == [2, 1, 1, 1] * 10
    assert [one["saved"] for one in seen["evaluations"]] == [0, 1, 1, 1] * 10
    assert all(one["cfg"] == 4.0 for one in seen["evaluations"])


def test_tolerance_saves_passes_too(run, conditional):
    _, seen = run(conditional, steps=40, tolerance=0.5)
    assert seen["passes"] + seen["saved"] == 80 and 45 <= seen["passes"] < 70


def test_nothing_asked_changes_nothing(run, conditional, wiring):
    plain, _ = run(conditional)
    assert torch.equal(plain, run(conditional, every=1, tolerance=0.0)[0])
    assert not torch.equal(plain, run(conditional, every=3)[0])


def test_every_run_begins_anew(run, conditional):
    first, _ = run(conditional, every=3)
    assert torch.equal(first, run(conditional, every=3)[0])


@pytest.mark.parametrize("reuse", [{"every": 3}, {"tolerance": 0.5}], ids=str)
def test_it_is_nearer_to_full_cfg_than_half_an_interval(
    call, wiring, load_model, pack_module, constant, reuse
):
    """On the digits' model, with fewer passes."""
    model, _ = load_model("digits_adm.safetensors", dtype="fp32")
    interval = pack_module("guidance").GuidanceSchedule.interval("step", 0.0, 0.5, 4.0)
    drawn = []
    for schedule, inputs in ((constant(4.0), {}), (constant(4.0), reuse), (interval, {})):
        (each,) = call("CFGScaleScheduler", model=model, schedule=schedule, **inputs)
        each, trace = call("GuidanceTrace", model=each)
        guider = wiring.guider("cfg 3", each, first="0,1,2,3,4,5,6,7,8,9")
        start = noise(batch=10, size=32)
        samples = with_guider(guider, sampler_named("euler"), few_sigmas(each, 40), start=start)
        drawn.append((samples, trace.to_dict()["passes"]))
    (full, most), (held, passes), (half, more) = drawn
    assert (most, more) == (80, 60) and passes < 60
    assert (held - full).square().mean() < (half - full).square().mean()


@pytest.mark.parametrize("patch", ["RescaleCFG", "APG", "CFGZeroStar", "TCFG", "Mahiro"])
def test_with_cores_cfg_patches(run, wiring, conditional, patch):
    """They get an uncond in each evaluation: at every 1 as it is, else as it is foretold."""
    model = wiring.patched(patch, conditional)
    samples, seen = run(model, every=2)
    assert seen["passes"] == STEPS + STEPS // 2
    assert bool(samples.isfinite().all())
    assert not torch.equal(samples, run(conditional, every=2)[0])


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_sde", "dpm_adaptive", "euler_ancestral"])
def test_evaluations_count_and_not_steps(run, conditional, sampler):
    _, seen = run(conditional, sampler=sampler, every=4)
    count = len(seen["evaluations"])
    assert seen["passes"] == count + -(-count // 4)


def test_three_conditionings_are_left_alone(run, wiring, conditional):
    """Perp-Neg's third one has a term of its own."""
    plain, seen = run(conditional, kind="perp-neg")
    held, same = run(conditional, kind="perp-neg", every=4)
    assert torch.equal(plain, held) and seen["passes"] == same["passes"]


@pytest.mark.parametrize("kind", ["areas", "masks"])
def test_with_regions(run, conditional, kind):
    samples, seen = run(conditional, kind=kind, every=4)
    assert seen["saved"] > 0 and bool(samples.isfinite().all())


def test_the_packs_guider_has_it_too(call, label_of, conditional):
    model, trace = call("GuidanceTrace", model=conditional)
    y = {"positive": label_of(model, "1,2"), "negative": label_of(model, "")}
    (guider,) = call("ClassifierFreeGuidance", model=model, cfg=4.0, every=4, **y)
    with_guider(guider, sampler_named("euler"), few_sigmas(model, STEPS))
    assert trace.to_dict()["passes"] == STEPS + STEPS // 4


@pytest.mark.parametrize("kind", ["FLOW", "V_PREDICTION"])
def test_on_other_models(call, constant, core_model, kind):
    """A flow model begins at alpha 0."""
    model = core_model(kind)
    text = [[torch.zeros(1, 1, 1), {}]]
    inputs = {"positive": text, "negative": text, "cfg": 4.0, "every": 2}
    (guider,) = call("ClassifierFreeGuidance", model=model, **inputs)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = with_guider(guider, sampler_named("euler"), few_sigmas(model), start=start)
    assert bool(drawn.isfinite().all())
