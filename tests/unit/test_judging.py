"""Scores of samples, what they cost, and the table of them: exact numbers and words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from progress_bar import Bar
from tiny_networks import SIZE, diffusion_model, noisy_classifier

from guidance.core.distributed import ALONE, Processes
from guidance.evaluation import compute_cost as work
from guidance.evaluation import judge as evaluation
from guidance.evaluation import metrics
from guidance.evaluation.compute_cost import ComputeCost, count_compute
from guidance.evaluation.judge import (
    Reference,
    Score,
    check_judge,
    diversity,
    judge_samples,
    judged,
)
from guidance.evaluation.metrics import check_enough, frechet_distance, precision_recall
from guidance.evaluation.report import Row, table


def pictures(count, seed=0, size=SIZE):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def judge():
    return noisy_classifier(pool="adaptive")


# --- the judge -------------------------------------------------------------------------------


def test_an_image_is_judged_as_it_is_at_timestep_0(judge):
    images = pictures(5)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    maps = judge.network.features(x, torch.zeros(5))
    guesses, features = judged(judge, images)
    torch.testing.assert_close(features, maps.mean(dim=(2, 3)))
    assert torch.equal(guesses, judge.network.out(maps).argmax(dim=1))
    assert not features.requires_grad
    later = judge.network.features(x, torch.ones(5)).mean(dim=(2, 3))
    assert not torch.allclose(features, later)


def test_features_that_are_means_already_are_taken_as_they_are():
    judge = noisy_classifier(pool="spatial")
    images = pictures(2)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    expected = judge.network.features(x, torch.zeros(2))
    assert expected.ndim == 2
    torch.testing.assert_close(judged(judge, images)[1], expected)


def test_images_are_judged_in_parts(judge, monkeypatch):
    bars = []
    monkeypatch.setattr(
        evaluation, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1]
    )
    whole = judged(judge, pictures(5))
    monkeypatch.setattr(evaluation, "BATCH", 2)
    parts = judged(judge, pictures(5))
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])
    assert [bar.updates for bar in bars] == [[5], [2, 2, 1]]
    shown = {"total": 5, "desc": "judge", "unit": "image", "leave": False, "delay": 2}
    assert bars[0].options == shown


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


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 1, 1, 2], (5 + 10) / 2),
        ([1, 0, 2, 1, 2], (10 + 10) / 2),
        ([0, 1, 0, 0, 2], (0 + 10 + 10) / 3),
        ([0, 1, 2, 3, 4], 0.0),
    ],
)
def test_diversity_is_the_mean_distance_within_a_class(labels, expected):
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [6.0, 8.0]])
    assert diversity(features, torch.tensor(labels)) == pytest.approx(expected)


def test_each_class_counts_equally():
    features = torch.tensor([[0.0], [1.0], [0.0], [0.0], [0.0]])
    assert diversity(features, torch.tensor([0, 0, 1, 1, 1])) == 0.5


def test_a_judge_has_to_be_of_this_pack_and_fit():
    judge = noisy_classifier()
    check_judge(judge, (SIZE, SIZE, 3))
    with pytest.raises(ValueError) as caught:
        check_judge(judge, (SIZE, SIZE, 1))
    assert str(caught.value) == "The judge reads images of 3 channels, but these have 1."
    with pytest.raises(ValueError, match="takes 8x8 inputs .*the image or latent is 16x8"):
        check_judge(judge, (8, 16, 3))
    judge.network = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError) as caught:
        check_judge(judge, (SIZE, SIZE, 3))
    assert str(caught.value) == "The judge must be a classifier trained by train-classifier."


def test_real_images_have_to_be_of_the_same_size():
    reference = Reference(torch.zeros(1, 1), (4, 8, 3), "real.npz")
    reference.check([4, 8, 3], "a.npz")
    with pytest.raises(ValueError) as caught:
        reference.check((8, 4, 1), "a.npz")
    assert str(caught.value) == (
        "a.npz has images of 4x8x1, but those of real.npz are 8x4x3; compare images of one size."
    )


# --- distances -------------------------------------------------------------------------------


def test_four_images_are_enough():
    check_enough(4, "a.npz has 4 images")
    with pytest.raises(ValueError) as caught:
        check_enough(3, "a.npz has 3 images")
    assert str(caught.value) == (
        "a.npz has 3 images; a Frechet distance, precision and recall take at least 4 images."
    )


def line(*values):
    return torch.tensor([[float(value)] for value in values])


def test_the_smallest_sets_that_can_be_compared():
    assert frechet_distance(line(0, 2), line(0, 2)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(line(0, 2), line(1, 5)) == pytest.approx(4 + 2 + 8 - 2 * 4)
    assert precision_recall(line(0, 1, 2, 3), line(1, 2, 3, 6)) == (1.0, 1.0)
    assert precision_recall(line(0, 1, 2, 3), line(1, 2, 6, 7)) == (0.75, 1.0)


def test_the_third_nearest_neighbour_counts_unless_another_is_asked_for():
    real, generated = line(0, 1, 2, 4, 8), line(-4, 14, 15, 100)
    assert precision_recall(real, generated) == precision_recall(real, generated, 3)
    assert precision_recall(real, generated)[0] == 0.75
    assert precision_recall(real, generated, 1)[0] == 0.0


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            torch.zeros(4),
            torch.zeros(4, 2),
            "features have shapes (4,) and (4, 2); expected (N, D) and (M, D).",
        ),
        (
            torch.zeros(4, 2),
            torch.zeros(4, 2, 1),
            "features have shapes (4, 2) and (4, 2, 1); expected (N, D) and (M, D).",
        ),
        (
            torch.zeros(4, 2),
            torch.zeros(4, 3),
            "features have shapes (4, 2) and (4, 3); expected (N, D) and (M, D).",
        ),
        (
            torch.zeros(1, 2),
            torch.zeros(4, 2),
            "There are 1 images in a set; a covariance takes at least 2.",
        ),
        (
            torch.zeros(4, 2),
            torch.full((4, 2), torch.inf),
            "Some features are not finite; load the judge in fp32.",
        ),
    ],
)
def test_a_distance_is_refused_in_these_words(first, second, said):
    with pytest.raises(ValueError) as caught:
        frechet_distance(first, second)
    assert str(caught.value) == said


def test_neighbours_are_refused_in_these_words():
    with pytest.raises(ValueError) as caught:
        precision_recall(line(0, 1, 2), line(0, 1, 2, 3))
    assert str(caught.value) == (
        "There are 3 images in a set; 3 neighbours of each image takes at least 4."
    )
    with pytest.raises(ValueError) as caught:
        precision_recall(line(0, 1), line(0, 1), 0)
    assert str(caught.value) == "neighbours is 0; it must be at least 1."


def test_sets_are_looked_at_in_parts_of_a_thousand():
    assert (metrics.CHUNK, evaluation.BATCH) == (1024, 250)


# --- the table -------------------------------------------------------------------------------


def rows():
    full = Score(0.12345, 1.0, 3.14159, 0.5, 0.98765)
    return [
        Row("classifier", "classifier", 2.5, full, 5, None, ComputeCost(4, 0.5, 12.3456), "a.npz"),
        Row("CFG", "CFG, late", None, Score(1.0, 0.0), 7, {"points": []}, None),
    ]


def test_a_table_of_every_column():
    assert table(rows()).splitlines() == [
        "| guidance | scale | judge accuracy | Frechet distance | precision | recall | diversity "
        "| passes | gradients | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| classifier | 2.5 | 0.123 | 3.14 | 0.500 | 0.988 | 1.00 | 4 | 0.5 | 12.3 |",
        "| CFG, late |  | 1.000 |  |  |  | 0.00 |  |  |  |",
    ]


def test_a_row_as_numbers_and_names():
    first, second = (row.to_dict() for row in rows())
    assert first == {
        "kind": "classifier",
        "guidance": "classifier",
        "scale": 2.5,
        "images": 5,
        "schedule": None,
        "samples": "a.npz",
        "accuracy": 0.12345,
        "diversity": 1.0,
        "frechet": 3.14159,
        "precision": 0.5,
        "recall": 0.98765,
        "passes": 4,
        "gradients": 0.5,
        "seconds": 12.3456,
    }
    empty = ("frechet", "precision", "recall", "passes", "gradients", "seconds", "samples")
    assert all(second[name] is None for name in empty)
    assert second["schedule"] == {"points": []}


# --- what a run costs ------------------------------------------------------------------------


def test_work_begins_at_nothing_and_is_shared_out():
    assert ComputeCost() == ComputeCost(0, 0, 0.0)
    assert ComputeCost(8, 4, 2.0).per_image(4) == ComputeCost(2, 1, 0.5)
    assert ComputeCost(8, 4, 2.0).of_all(ALONE) == ComputeCost(8, 4, 2.0)


def test_work_of_several_processes_lasts_as_long_as_the_slowest(monkeypatch):
    shares = [ComputeCost(8, 4, 2.0), ComputeCost(1, 2, 3.0)]
    monkeypatch.setattr(Processes, "gathered", lambda self, value: shares)
    assert shares[0].of_all(Processes(0, 2)) == ComputeCost(9, 6, 3.0)


def test_the_time_of_the_block_is_counted(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(work.time, "perf_counter", lambda: next(clock))
    with count_compute(diffusion_model(), None) as found:
        assert found.seconds == 0.0
    assert found == ComputeCost(0, 0, 2.5)


def test_a_block_that_fails_leaves_no_counters_behind():
    model, classifier = diffusion_model(), noisy_classifier()
    with pytest.raises(ValueError), count_compute(model, classifier):
        raise ValueError
    assert not model.network._forward_hooks and not classifier.network._forward_hooks
