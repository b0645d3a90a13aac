"""Guidance Trace and Guidance Plot, in a real ComfyUI."""

from __future__ import annotations

import json

import pytest
import torch
from sampler_runs import drawn, evaluated, few_sigmas, noise


@pytest.fixture
def run(call, wiring, load_classifier, steered, scheduled):
    """Samples a MODEL with a trace, `first` or last in the row; (samples, trace)."""

    def sampled(
        model, *, guide=0.0, schedule=None, kind="cfg 3", first=False, steps=6, twice=False
    ):
        trace = None
        if first:
            model, trace = call("GuidanceTrace", model=model)
        if schedule is not None:
            model = scheduled(model, schedule)
        for _ in range(2 if twice else bool(guide)):
            model = steered(model, load_classifier(), "1,2", guide)
        if not first:
            model, trace = call("GuidanceTrace", model=model)
        return drawn(wiring.guider(kind, model), few_sigmas(model, steps)), trace

    return sampled


@pytest.fixture
def half(made):
    """CFG 4 in the first half of the steps, 1 after."""
    return made("interval", axis="step", start=0.0, end=0.5, scale=4.0)


@pytest.mark.parametrize("first", [True, False])
def test_what_is_seen(run, conditional, half, first):
    """Wherever the trace stands in the row."""
    _, trace = run(conditional, guide=50.0, schedule=half, first=first)
    seen = trace.to_dict()
    assert seen["passes"] == 3 * 2 + 3
    assert [one["passes"] for one in seen["evaluations"]] == [2] * 3 + [1] * 3
    assert [one["cfg"] for one in seen["evaluations"]] == [4.0] * 3 + [1.0] * 3
    assert [one["step"] for one in seen["evaluations"]] == list(range(6))
    for one in seen["evaluations"]:
        assert (one["cfg_norm"] is None) == (one["cfg"] == 1)
        assert one["cfg_norm"] is None or one["cfg_norm"] > 0
        (record,) = one["classifiers"]
        assert record["scale"] == 50.0 and record["norm"] > 0
        assert len(record["log_probs"]) == 2 and max(record["log_probs"]) < 0


def test_norm_of_the_cfg_term(run, wiring, unclipped):
    """(cfg - 1)(cond - uncond), by core's own two predictions."""
    _, trace = run(unclipped, steps=1)
    sigma = float(few_sigmas(unclipped, 1)[0])
    x = noise() * (1 + sigma**2) ** 0.5
    cond, uncond = (evaluated(wiring.guider(k, unclipped), x, sigma) for k in ("cfg 1", "cfg 0"))
    expected = (2 * (cond - uncond)).flatten(1).norm(dim=1).mean()
    (one,) = trace.to_dict()["evaluations"]
    assert one["cfg_norm"] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("kind", ["basic", "cfg 1", "cfg 3", "perp-neg", "dual", "areas"])
def test_the_picture_is_the_same_with_a_trace(run, wiring, conditional, kind):
    samples, trace = run(conditional, kind=kind)
    sigmas = few_sigmas(conditional, 6)
    plain = drawn(wiring.guider(kind, conditional), sigmas)
    assert torch.equal(samples, plain)
    evaluations = trace.to_dict()["evaluations"]
    per_step = {"basic": 1, "cfg 1": 1, "cfg 3": 2, "perp-neg": 3, "dual": 3, "areas": 5}[kind]
    assert [one["passes"] for one in evaluations] == [per_step] * 6


def test_a_new_run_begins_anew(call, wiring, conditional):
    model, trace = call("GuidanceTrace", model=conditional)
    for steps in (5, 3):
        drawn(wiring.guider("cfg 3", model), few_sigmas(model, steps))
        assert len(trace.evaluations) == steps


def test_plot(run, call, conditional, half):
    samples, trace = run(conditional, guide=50.0, schedule=half, twice=True)
    image, text = call("GuidancePlot", trace=trace, samples={"samples": samples})
    assert image.shape[0] == 1 and image.shape[-1] == 3 and image.shape[1] > 400
    assert 0 <= image.min() < 0.3 and image.max() == 1
    seen = json.loads(text)
    assert len(seen["evaluations"]) == 6
    assert len(seen["evaluations"][0]["classifiers"]) == 2


def test_plot_of_nothing(call, conditional):
    _, trace = call("GuidanceTrace", model=conditional)
    with pytest.raises(ValueError, match="trace holds no evaluation; sample with the MODEL"):
        call("GuidancePlot", trace=trace, samples={"samples": torch.zeros(1, 3, 16, 16)})
