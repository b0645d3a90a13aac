"""How samples are judged: accuracy, diversity, Frechet distance, precision and recall, and cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from tiny_networks import SIZE, diffusion_model, noisy_classifier

from guidance.core.distributed import ALONE, Processes
from guidance.evaluation import compute_cost, metrics
from guidance.evaluation import judge as evaluation
from guidance.evaluation.compute_cost import ComputeCost, count_compute
from guidance.evaluation.judge import Reference, check_judge, diversity, judge_samples, judged
from guidance.evaluation.metrics import check_enough, frechet_distance, precision_recall


def pictures(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def seen(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def judge():
    return noisy_classifier(pool="adaptive")


def test_an_image_is_judged_as_it_is_at_timestep_0(judge):
    images = pictures(5)
    x = seen(images)
    maps = judge.network.features(x, torch.zeros(5))
    guesses, features = judged(judge, images)
    torch.testing.assert_close(features, maps.mean(dim=(2, 3)))
    assert torch.equal(guesses, judge.network.out(maps).argmax(dim=1))
    assert not features.requires_grad
    later = judge.network.features(x, torch.ones(5)).mean(dim=(2, 3))
    assert not torch.allclose(features, later)
    spatial = noisy_classifier(pool="spatial")  # its features are means already
    expected = spatial.network.features(x, torch.zeros(5))
    assert expected.ndim == 2
    torch.testing.assert_close(judged(spatial, images)[1], expected)


def test_parts_make_no_difference(judge, monkeypatch):
    real, generated = normal(50, 4), normal(40, 4, seed=1)
    whole, compared = judged(judge, pictures(5)), precision_recall(real, generated)
    monkeypatch.setattr(evaluation, "BATCH", 2)
    monkeypatch.setattr(metrics, "CHUNK", 7)
    parts = judged(judge, pictures(5))
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])
    assert precision_recall(real, generated) == compared and 0 < compared[0] < 1


def test_the_score_of_samples(judge):
    images, labels = pictures(8), np.arange(8) % 3
    guesses, features = judged(judge, images)
    score = judge_samples(judge, images, guesses.numpy())
    assert (score.accuracy, score.frechet, score.precision, score.recall) == (1.0, None, None, None)
    wrong = guesses.numpy().copy()
    wrong[:2] = (wrong[:2] + 1) % 3
    assert judge_samples(judge, images, wrong).accuracy == 0.75
    real = judged(judge, pictures(6, seed=1))[1]
    score = judge_samples(judge, images, labels, Reference(real, (SIZE, SIZE, 3), "real"))
    assert score.diversity == diversity(features, torch.from_numpy(labels))
    assert score.frechet == frechet_distance(real, features)
    assert (score.precision, score.recall) == precision_recall(real, features)


def test_diversity_is_the_mean_distance_within_a_class():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [6.0, 8.0]])
    for labels, expected in (
        ([0, 0, 1, 1, 2], (5 + 10) / 2),
        ([1, 0, 2, 1, 2], (10 + 10) / 2),
        ([0, 1, 0, 0, 2], (0 + 10 + 10) / 3),
        ([0, 0, 1, 1, 1], (5 + (10 + 10 + 0) / 3) / 2),  # each class counts equally
        ([0, 1, 2, 3, 4], 0.0),
    ):
        assert diversity(features, torch.tensor(labels)) == pytest.approx(expected)


def test_a_judge_has_to_be_of_this_pack_and_fit():
    judge = noisy_classifier()
    check_judge(judge, (SIZE, SIZE, 3))
    with pytest.raises(ValueError, match="3 channels, but these have 1"):
        check_judge(judge, (SIZE, SIZE, 1))
    with pytest.raises(ValueError, match="takes 8x8 inputs .*the image or latent is 16x8"):
        check_judge(judge, (8, 16, 3))
    judge.network = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="train-classifier"):
        check_judge(judge, (SIZE, SIZE, 3))
    reference = Reference(torch.zeros(1, 1), (4, 8, 3), "real.npz")
    reference.check([4, 8, 3], "a.npz")
    with pytest.raises(ValueError, match="a.npz has images of 4x8x1, .* real.npz are 8x4x3"):
        reference.check((8, 4, 1), "a.npz")


def test_only_what_runs_in_the_block_is_counted(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.5])
    monkeypatch.setattr(compute_cost.time, "perf_counter", lambda: next(clock))
    model, classifier = diffusion_model(), noisy_classifier()
    x, t = torch.zeros(3, 3, SIZE, SIZE), torch.zeros(3)
    with pytest.raises(ValueError), count_compute(model, classifier):
        raise ValueError
    with count_compute(model, classifier) as work:
        model(x, t, torch.tensor([0, 1, 2]))
        model(x[:1], t[:1], torch.tensor([0]))
        classifier.log_probs(x, 1.0)
        classifier.gradient(x[:2], 1.0, 1)
    model(x, t, torch.tensor([0, 1, 2]))
    classifier.gradient(x, 1.0, 1)
    assert work == ComputeCost(4, 2, 2.5)


def test_cost_is_shared_out_and_added_up(monkeypatch):
    """Processes run at the same time: the slowest decides."""
    assert ComputeCost(8, 4, 2.0).per_image(4) == ComputeCost(2, 1, 0.5)
    assert ComputeCost(8, 4, 2.0).of_all(ALONE) == ComputeCost(8, 4, 2.0)
    shares = [ComputeCost(8, 4, 2.0), ComputeCost(1, 2, 3.0)]
    monkeypatch.setattr(Processes, "gathered", lambda self, value: shares)
    assert shares[0].of_all(Processes(0, 2)) == ComputeCost(9, 6, 3.0)


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


def test_what_cannot_be_compared_is_refused():
    nine = normal(9, 4)
    for said, call, *given in (
        ("1 images in a set; .* at least 2", frechet_distance, normal(1, 4), nine),
        ("3 images in a set; .* at least 4", precision_recall, nine, normal(3, 4)),
        ("neighbours is 0", precision_recall, nine, nine, 0),
        (r"\(9, 4\) and \(9, 5\)", frechet_distance, nine, normal(9, 5)),
        (r"\(4,\) and \(9, 2\)", frechet_distance, normal(4), normal(9, 2)),
        ("not finite", frechet_distance, nine / 0, nine),
        ("a.npz has 3 images; .* at least 4", check_enough, 3, "a.npz has 3 images"),
    ):
        with pytest.raises(ValueError, match=said):
            call(*given)


def test_the_smallest_sets_that_can_be_compared():
    line = lambda *values: torch.tensor([[float(value)] for value in values])  # noqa: E731
    check_enough(4, "a.npz has 4 images")
    assert frechet_distance(line(0, 2), line(1, 5)) == pytest.approx(4 + 2 + 8 - 2 * 4)
    assert precision_recall(line(0, 1, 2, 3), line(1, 2, 6, 7)) == (0.75, 1.0)
    # by default the third nearest neighbour counts
    real, generated = line(0, 1, 2, 4, 8), line(-4, 14, 15, 100)
    assert precision_recall(real, generated)[0] == 0.75
    assert precision_recall(real, generated, 1)[0] == 0.0
