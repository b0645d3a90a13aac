"""Noise put back between two turns of a step."""

from __future__ import annotations

import pytest
import torch

from guidance.sampling.recurrence import noise_back, repeats_of_steps, stretches

COUNT = 200_000


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
