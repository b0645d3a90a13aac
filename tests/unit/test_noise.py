"""Noise schedules, timesteps, and the coordinates that samplers carry images in."""

from __future__ import annotations

import math

import pytest
import torch

from guidance import NoiseSchedule
from guidance.core.noise import (
    alpha_bar_from_sigma,
    cosine_betas,
    linear_betas,
    mean_norm,
    per_image,
    sigma_from_alpha_bar,
    vp_scale,
)

both_schedules = pytest.mark.parametrize("name", ["linear", "cosine"])


@both_schedules
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-8), (torch.float32, 0.05)])
@pytest.mark.parametrize("share", [0, 0.1, 0.5])
def test_timesteps_are_linear_in_log_sigma(name, dtype, bar, share):
    schedule = NoiseSchedule(name)
    logs = schedule.ratios.log()
    got = schedule.timestep((logs[:-1] + share * logs.diff()).exp().to(dtype))
    assert got.dtype == dtype
    assert (got - torch.arange(999) - share).abs().max() < bar


@both_schedules
def test_sigma_and_alpha_bar_are_each_others_inverse(name):
    schedule = NoiseSchedule(name)
    sigma = sigma_from_alpha_bar(schedule.alpha_bar)
    assert torch.equal(sigma, schedule.ratios) and schedule.max_ratio == sigma[-1]
    back = alpha_bar_from_sigma(sigma)
    assert ((back - schedule.alpha_bar) / schedule.alpha_bar).abs().max() < 1e-12


@both_schedules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_lies_outside_is_clamped_to_the_ends(name, dtype):
    schedule = NoiseSchedule(name)
    ratio = torch.tensor([0.0, 1e-30, schedule.max_ratio * 2, 1e30, math.inf], dtype=dtype)
    assert schedule.timestep(ratio).tolist() == [0, 0, 999, 999, 999]
    other = torch.rand(2, 3, 4, dtype=dtype) + 0.1
    assert torch.equal(
        schedule.timestep(other.transpose(0, 2)).transpose(0, 2), schedule.timestep(other)
    )


def test_an_own_schedule_is_taken_as_it_is():
    alpha_bar = torch.tensor([0.9, 0.5, 0.1])
    schedule = NoiseSchedule(alpha_bar)
    assert (len(schedule), schedule.name) == (3, "custom")
    assert torch.allclose(schedule.alpha_bar, alpha_bar.double())
    assert schedule.max_ratio == pytest.approx(3.0)
    steps = schedule.timestep(torch.tensor([1 / 3, 1.0, 3.0], dtype=torch.float64))
    assert steps.tolist() == pytest.approx([0, 1, 2], abs=1e-6)


def test_the_papers_betas():
    betas = linear_betas()
    assert (betas[0], betas[-1], len(betas)) == (1e-4, 2e-2, 1000)
    assert cosine_betas().max() == 0.999 and len(cosine_betas()) == 1000


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("sqrt", "'sqrt'"),
        ("", "''"),
        (torch.tensor([0.5]), "(1,)"),
        (torch.tensor([[0.9, 0.5]]), "(1, 2)"),
        (torch.tensor([]), "(0,)"),
        (torch.tensor([0.9, 0.25, 0.5]), "0.5 after 0.25"),
        (torch.tensor([0.9, 0.25, 0.25]), "0.25 after 0.25"),
        (torch.tensor([1.0, 0.5]), "holds 1;"),
        (torch.tensor([0.5, 0.0]), "holds 0;"),
        (torch.tensor([0.5, -0.25]), "-0.25"),
        (torch.tensor([0.9, math.nan, 0.1]), "nan"),
    ],
    ids=str,
)
def test_a_bad_schedule_is_refused_with_its_value(bad, said):
    with pytest.raises(ValueError) as caught:
        NoiseSchedule(bad)
    assert said in str(caught.value)
    assert "noise_schedule" in str(caught.value)


def test_the_vp_scale_makes_the_squares_of_alpha_and_sigma_sum_to_one():
    sigma, alpha = torch.tensor([0.0, 0.5, 157.0]), torch.tensor([1.0, 0.5, 1.0])
    scale = vp_scale(sigma, alpha)
    assert torch.allclose((alpha / scale) ** 2 + (sigma / scale) ** 2, torch.ones(3))


def test_values_of_a_batch_multiply_their_own_image():
    images = torch.ones(2, 3, 4, 5)
    scaled = per_image(torch.tensor([2.0, 3.0]), images) * images
    assert scaled.flatten(1).unique(dim=1).flatten().tolist() == [2.0, 3.0]
    assert per_image(2.5, images) == 2.5


def test_the_mean_of_the_images_lengths():
    assert float(mean_norm(torch.tensor([[[3.0], [4.0]], [[0.0], [1.0]]]))) == 3.0
    assert not mean_norm(torch.ones(1, 2, requires_grad=True)).requires_grad
    # the length of 65,504 twice is beyond half precision
    half = torch.full((1, 2), 65504.0, dtype=torch.float16)
    assert float(mean_norm(half)) == pytest.approx(65504 * math.sqrt(2))
