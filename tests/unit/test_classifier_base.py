"""What all classifiers share: the likelihood of a target, labels of a batch, names of classes."""

from __future__ import annotations

import math

import pytest
import torch

from guidance.classifiers.base import (
    Target,
    label_of_each,
    log_likelihood,
    smoothed_target,
)

LOG_PROBS = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5]]).log()


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (0, 0.5 * 0.125),
        (2, 0.25 * 0.5),
        (torch.tensor(1), 0.25 * 0.375),
        (torch.tensor([2]), 0.25 * 0.5),
        (torch.tensor([0, 2]), 0.5 * 0.5),
        (torch.tensor([2, 0]), 0.25 * 0.125),
    ],
)
def test_the_likelihood_of_a_batch_is_the_product_over_its_images(label, expected):
    found = log_likelihood(LOG_PROBS, Target(label))
    assert found.shape == ()
    assert float(found) == pytest.approx(math.log(expected))


def test_a_smoothed_label_counts_the_other_classes_too():
    one = [math.log(value) for value in (0.5, 0.25, 0.25)]
    expected = 0.7 * one[0] + 0.3 * sum(one) / 3
    assert float(log_likelihood(LOG_PROBS[:1], Target(0, 0.3))) == pytest.approx(expected)
    assert log_likelihood(LOG_PROBS.double(), Target(0, 0.3)).dtype == torch.float64


def test_a_smoothed_target():
    target = smoothed_target(torch.tensor([2, 0]), 4, 0.2)
    assert target.dtype == torch.float32
    expected = [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]
    assert target.tolist() == [pytest.approx(row) for row in expected]
    assert smoothed_target(torch.tensor([1]), 2, 0.0).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("label", "found"),
    [(-1, "-1"), (3, "3"), (torch.tensor([0, 3]), "3"), (torch.tensor([-1]), "-1")],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_is_no_class_is_refused(label, found, smoothing):
    with pytest.raises(ValueError, match=f"label is {found}, .* from 0 to 2"):
        log_likelihood(LOG_PROBS, Target(label, smoothing))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (4, [4, 4, 4]),
        (torch.tensor(4), [4, 4, 4]),
        (torch.tensor([4]), [4, 4, 4]),
        (torch.tensor([4, 5, 6], dtype=torch.int32), [4, 5, 6]),
    ],
)
def test_each_image_gets_a_label(label, expected):
    found = label_of_each(label, 3)
    assert (found.tolist(), found.dtype) == (expected, torch.int64)


@pytest.mark.parametrize("shape", [(2,), (0,), (3, 1)])
def test_labels_that_do_not_fit_the_batch(shape):
    with pytest.raises(ValueError) as caught:
        label_of_each(torch.zeros(shape), 3)
    assert str(shape) in str(caught.value) and "3 of them" in str(caught.value)


def test_the_labels_that_were_given_stay_as_they_are():
    given = torch.tensor([4, 5, 6])
    label_of_each(given, 3)[0] = 9
    assert given.tolist() == [4, 5, 6]
