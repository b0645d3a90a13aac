"""Recurrence: noise put back between two turns of a step, and whole runs with it."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from long_cases import long_but
from mixture import distance, exact_diffusion, exact_samples
from tiny_networks import diffusion_model, images, noisy_classifier

from guidance import GuidanceSchedule, NoiseSchedule
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample, turns
from guidance.sampling.recurrence import noise_back, repeats_of_steps, stretches
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain
from guidance.sampling.strength import Strength

COUNT = 200_000
SAMPLES = 20_000
ALPHA_BAR = NoiseSchedule("linear").alpha_bar.tolist()


@pytest.mark.parametrize(
    ("near", "far"),
    [
        ((1.0, 1.0), (3.0, 1.0)),  # EPS: x = x0 + sigma eps
        ((0.0, 1.0), (0.5, 1.0)),
        ((0.3, 0.7), (0.8, 0.2)),  # flow: x = (1 - sigma) x0 + sigma eps
        ((0.0, 1.0), (1.0, 0.0)),
        ((0.6, 0.8), (0.8, 0.6)),  # VP
    ],
)
def test_it_has_the_distribution_of_the_far_level(near, far):
    draws = torch.Generator().manual_seed(0)
    x0 = 2.0
    eps, noise = torch.randn(2, COUNT, generator=draws, dtype=torch.float64)
    x = noise_back(near[1] * x0 + near[0] * eps, near, far, noise)
    assert x.mean().item() == pytest.approx(far[1] * x0, abs=0.03)
    assert x.std().item() == pytest.approx(far[0], rel=0.01)


def test_steps_that_are_taken_once_stay_together():
    assert stretches([1, 1, 3, 3, 1]) == [(0, 2, 1), (2, 3, 3), (3, 4, 3), (4, 5, 1)]
    assert stretches([1, 1]) == [(0, 2, 1)]
    assert stretches([]) == []


def test_steps_inside_of_the_stretch_are_repeated():
    sigmas = torch.tensor([10.0, 5.0, 2.0, 3.0, 1.0, 0.0])
    assert repeats_of_steps(sigmas, 3, 5.0, 1.0) == [
        1,
        3,
        1,
        3,
        1,
    ]  # 2 to 3 adds noise
    assert repeats_of_steps(sigmas, 3, 1e3, -1.0) == [3, 3, 1, 3, 3]


def test_the_last_fifth_of_the_timesteps_is_not_repeated():
    steps = chain(ALPHA_BAR[:11], [0, 1, 2, 3, 10])
    found = list(turns(steps, 11, 3))
    assert [step.timestep for step, *_ in found] == [10, 10, 10, 3, 3, 3, 2, 1, 0]
    assert [again for *_, again in found] == [False, True, True, False, True, True, *[False] * 3]
    positions = [astuple(position) for _, position, _ in found]
    assert positions[0] == positions[1] == positions[2] != positions[3]
    assert [position[1] for position in positions] == [0, 0, 0, 1, 1, 1, 2, 3, 4]


def script(seed=4):
    """Noise one after the other, and how much was drawn."""
    generator, drawn = torch.Generator().manual_seed(seed), []

    def noise(like):
        drawn.append(torch.randn(like.shape, generator=generator))
        return drawn[-1]

    return noise, drawn


@pytest.mark.parametrize(("method", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)], ids=str)
def test_a_run_is_its_steps_one_after_the_other_with_noise_put_back(method, eta):
    """Each turn draws the noise of its step; before each but the first, what is put back."""
    model, classifier, labels = diffusion_model(), noisy_classifier(), torch.tensor([0, 2])
    guides = [Guide(classifier, labels, Strength(scale=20.0))]
    options = {"method": method, "eta": eta, "labels": labels, "cfg": 3.0, "guides": guides}
    steps = chain(ALPHA_BAR, [0, 100, 500, 900])
    noise, drawn = script()
    got = sample(model, images(), steps, recurrence=2, noise=noise, **options)
    assert len(drawn) == 2 + 2 * 3  # the last two steps are taken once

    noise, x = script()[0], images()
    for step in steps:
        for turn in range(1 if step.timestep <= 100 else 2):
            if turn:
                ratio = step.alpha_bar / step.alpha_bar_prev
                x = ratio**0.5 * x + (1 - ratio) ** 0.5 * noise(x)
            x = sample(model, x, [step], noise=noise, **options)
    assert (got - x).abs().max() < 1e-5
    assert (got - sample(model, images(), steps, noise=script()[0], **options)).abs().max() > 0.01


def test_one_turn_is_the_run_without_recurrence():
    steps = chain(ALPHA_BAR, respaced_timesteps("ddim5"))
    (noise, drawn), (other, _) = script(), script()
    options = {"method": "ddpm", "labels": torch.tensor([0, 2]), "cfg": 3.0}
    got = sample(diffusion_model(), images(), steps, recurrence=1, noise=noise, **options)
    assert torch.equal(got, sample(diffusion_model(), images(), steps, noise=other, **options))
    assert len(drawn) == 5


def test_a_schedule_has_the_same_scale_in_each_turn_of_a_step():
    """CFG only in the first step: its two turns need both passes, all others one."""
    model, batches = diffusion_model(), []
    model.network.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    steps = chain(ALPHA_BAR, [0, 500, 900])
    cfg = GuidanceSchedule.from_json('{"axis": "step", "values": [3, 1, 1]}')
    sample(model, images(), steps, labels=torch.tensor([0, 2]), cfg=cfg, recurrence=2)
    assert batches == [4, 4, 2, 2, 2]


@pytest.mark.parametrize("repeats", [0, -1, 101, 10**9])
def test_repeats_that_cannot_be_are_refused(repeats):
    with pytest.raises(ValueError, match=f"recurrence is {repeats}; .*from 1 .* 100"):
        sample(diffusion_model(), images(), chain(ALPHA_BAR, [0]), recurrence=repeats)


@pytest.mark.parametrize(
    ("method", "eta"),
    long_but([("ddim", 1.0)], [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)]),
    ids=str,
)
def test_without_guidance_it_draws_the_models_own_distribution(method, eta, say_at_the_end):
    model, steps = exact_diffusion(), chain(ALPHA_BAR, respaced_timesteps("50"))

    def found(recurrence):
        noise, _ = script()
        x = noise(torch.empty(SAMPLES, 3, 1, 1))
        options = {"method": method, "eta": eta, "clip_denoised": False}
        drawn = sample(model, x, steps, recurrence=recurrence, noise=noise, **options)
        return distance(drawn[:, :2].flatten(1), exact_samples(None, 2, SAMPLES))

    plain, *repeated = map(found, (1, 2, 4))
    words = ", ".join(f"{value:.4f}" for value in (plain, *repeated))
    say_at_the_end(
        f"sliced Wasserstein, embedded {method} eta {eta:g}, taken 1, 2, 4 times: {words}"
    )
    assert max(repeated) <= plain + 0.01
