"""Frechet distance, and precision and recall, where the answer is known."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import sqrtm

from guidance.evaluation import metrics
from guidance.evaluation.metrics import frechet_distance, precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean, covariance, count=200, seed=0):
    """So many features of exactly that mean and covariance."""
    plain = normal(count, len(mean), seed=seed)
    plain = torch.linalg.qr(plain - plain.mean(dim=0)).Q * (count - 1) ** 0.5
    return plain @ torch.linalg.cholesky(covariance).T + mean


def covariance(dimensions, seed):
    root = normal(dimensions, dimensions, seed=seed)
    return root @ root.T + 0.1 * torch.eye(dimensions, dtype=torch.float64)


# --- Frechet distance ------------------------------------------------------------------------


def test_the_distance_of_gaussians_whose_covariances_commute():
    """|m1 - m2|^2 + sum (sqrt a - sqrt b)^2 over the common axes."""
    axes = torch.linalg.qr(normal(3, 3)).Q
    a, b = torch.tensor([4.0, 9.0, 0.25]).double(), torch.tensor([1.0, 16.0, 0.25]).double()
    first = gaussian(normal(3, seed=1) * 0, axes @ a.diag() @ axes.T)
    second = gaussian(torch.tensor([1.0, 2.0, 2.0]).double(), axes @ b.diag() @ axes.T, 150, 7)
    assert frechet_distance(first, second) == pytest.approx(9 + 1 + 1 + 0, rel=1e-9)


@pytest.mark.parametrize("dimensions", [2, 20])
def test_the_distance_of_any_gaussians(dimensions):
    m1, m2 = normal(dimensions, seed=1), normal(dimensions, seed=2)
    s1, s2 = covariance(dimensions, 3), covariance(dimensions, 4)
    root = torch.from_numpy(sqrtm((s1 @ s2).numpy()).real)
    expected = (m1 - m2).square().sum() + torch.trace(s1 + s2 - 2 * root)
    found = frechet_distance(gaussian(m1, s1, seed=5), gaussian(m2, s2, 300, seed=6))
    assert found == pytest.approx(float(expected), rel=1e-8)


def test_the_distance_is_zero_to_itself_and_the_same_both_ways():
    first, second = normal(50, 8), normal(40, 8, seed=1) + 1
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-9)
    assert frechet_distance(first, first + 3) == pytest.approx(8 * 9, rel=1e-9)


def test_covariances_without_full_rank():
    """Few images in many dimensions: here two crossing lines, whose product is 0."""
    line = torch.tensor([-1.0, 1.0])
    first, second = torch.zeros(2, 30), torch.zeros(2, 30)
    first[:, 3], second[:, 7] = 3 * line, 2 * line
    assert frechet_distance(first, second) == pytest.approx(18 + 8, rel=1e-9)
    assert frechet_distance(first, 2 * first) == pytest.approx(18, rel=1e-6)


def test_single_precision_far_from_zero_is_enough():
    first, second = normal(500, 4).float() + 1000, normal(500, 4, seed=1).float() + 1001
    exact = frechet_distance(first.double() - 1000, second.double() - 1000)
    assert frechet_distance(first, second) == pytest.approx(exact, rel=1e-6)


# --- precision and recall --------------------------------------------------------------------


def test_equal_sets_cover_each_other():
    features = normal(60, 5).float()
    assert precision_recall(features, features.flip(0)) == (1.0, 1.0)


def test_sets_far_apart_have_nothing_in_common():
    features = normal(60, 5)
    assert precision_recall(features, features + 1000) == (0.0, 0.0)


def test_some_of_the_modes_cost_recall_and_others_cost_precision():
    near, far = normal(30, 5), normal(30, 5, seed=1) + 1000
    assert precision_recall(torch.cat([near, far]), near) == (1.0, 0.5)
    assert precision_recall(near, torch.cat([near, far])) == (0.5, 1.0)


def test_points_on_a_line():
    """With one neighbour the radii are 1, 1, 9 and 3.5, 3.5, 17.5; an edge belongs to its ball."""
    real = torch.tensor([[0.0], [1.0], [10.0]])
    generated = torch.tensor([[-1.5], [2.0], [19.5]])
    assert precision_recall(real, generated, 1) == (pytest.approx(1 / 3), 1.0)
    assert precision_recall(generated, real, 1) == (1.0, pytest.approx(1 / 3))


def test_an_image_is_no_neighbour_of_itself_but_its_copies_are():
    """Of four copies the radius is 0; among three it would reach the fourth point."""
    real = torch.tensor([[0.0], [0.0], [0.0], [0.0], [5.0]])
    near = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    assert precision_recall(real[:4], near)[0] == 0.0
    assert precision_recall(real[1:], near)[0] == 1.0


def test_more_neighbours_reach_farther():
    real, generated = normal(100, 10), normal(100, 10, seed=1) * 1.3
    found = [precision_recall(real, generated, k) for k in (1, 3, 10)]
    assert found[0][0] < found[1][0] < found[2][0]
    assert found[0][1] < found[2][1]


def test_parts_make_no_difference(monkeypatch):
    real, generated = normal(50, 4), normal(40, 4, seed=1)
    whole = precision_recall(real, generated)
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert precision_recall(real, generated) == whole
    assert 0 < whole[0] < 1


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: frechet_distance(normal(1, 4), normal(9, 4)), "1 images in a set; .* at least 2"),
        (lambda: precision_recall(normal(9, 4), normal(3, 4)), "3 images in a set; .* at least 4"),
        (lambda: precision_recall(normal(9, 4), normal(9, 4), 0), "neighbours is 0"),
        (lambda: frechet_distance(normal(9, 4), normal(9, 5)), r"\(9, 4\) and \(9, 5\)"),
        (lambda: frechet_distance(normal(9, 4) / 0, normal(9, 4)), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
