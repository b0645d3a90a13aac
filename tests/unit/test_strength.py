"""The options that shape the scale: entropy-aware scale, cap, label smoothing."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import CLASSES, SIZE, SmoothClassifier, noisy_classifier

from guidance import NoisyClassifier
from guidance.sampling.classifier_guidance import classifier_term, guide_denoised
from guidance.sampling.strength import Strength, cap_factor, entropy_factor, smoothed_target


def images(batch=3, dtype=torch.float64):
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture
def classifier():
    return NoisyClassifier(SmoothClassifier(), "linear")


LABELS = torch.tensor([0, 2, 1])


def term(classifier, x, sigma=2.0, denoised=None, **options):
    strength = Strength(**{"scale": 1.5, **options})
    denoised = torch.ones_like(x) if denoised is None else denoised
    return classifier_term(classifier, x, denoised, sigma, LABELS, strength)


def test_without_options_it_is_guide_denoised(classifier):
    x = images()
    expected = guide_denoised(x, classifier.gradient(x, 2.0, LABELS), 2.0, 1.5)
    assert torch.allclose(x + term(classifier, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("probs", "factor"),
    [
        ([0.25] * 4, 1.0),
        ([0.5, 0.5, 0.0, 0.0], 2.0),
        ([1.0, 0.0, 0.0, 0.0], 7.0),
        ([0.7, 0.1, 0.1, 0.1], math.log(4) / -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))),
    ],
)
def test_entropy_factor(probs, factor):
    log_probs = torch.tensor([probs], dtype=torch.float64).log()
    assert entropy_factor(log_probs, 7.0).item() == pytest.approx(factor, rel=1e-6)


def test_entropy_limit_multiplies_each_image_by_its_own_factor(classifier):
    x = images()
    factor = entropy_factor(classifier.log_probs(x, 2.0), 1.3)
    assert len(set(factor.tolist())) > 1
    got = term(classifier, x, entropy_limit=1.3)
    expected = term(classifier, x) * factor[:, None, None, None]
    assert torch.allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("cap", [0.01, 0.1])
def test_cap_bounds_the_length_and_keeps_the_direction(classifier, cap):
    x, denoised = images(), torch.ones_like(images())
    denoised[1] *= 1e6  # far over its term: left as it is
    free = term(classifier, x, denoised=denoised, scale=50.0)
    capped = term(classifier, x, denoised=denoised, scale=50.0, cap=cap)
    lengths = capped.flatten(1).norm(dim=1) / denoised.flatten(1).norm(dim=1)
    assert free.flatten(1).norm(dim=1)[0] > denoised.flatten(1).norm(dim=1)[0] * cap
    assert lengths[0].item() == pytest.approx(cap, rel=1e-5)
    assert torch.equal(capped[1], free[1])
    direction = torch.cosine_similarity(capped.flatten(1), free.flatten(1))
    assert (direction > 1 - 1e-6).all()


def test_cap_of_a_term_of_zero():
    zero = torch.zeros(2, 3)
    assert torch.equal(cap_factor(zero, zero, 0.5), torch.ones(2))
    assert torch.equal(cap_factor(torch.ones(2, 3), zero, 0.5), torch.zeros(2))


def test_label_smoothing_follows_the_smoothed_target(classifier):
    """The gradient of sum_k q_k log p_k is the same mixture of the classes' gradients."""
    x = images()
    got, _ = classifier.gradient_and_log_probs(x, 2.0, LABELS, label_smoothing=0.3)
    each = torch.stack([classifier.gradient(x, 2.0, k) for k in range(CLASSES)], dim=1)
    weights = torch.full((3, CLASSES), 0.1, dtype=torch.float64)
    weights[torch.arange(3), LABELS] += 0.7
    assert torch.allclose(got, (weights[..., None, None, None] * each).sum(dim=1), atol=1e-7)
    target = smoothed_target(LABELS, CLASSES, 0.3)
    assert torch.allclose(target, weights.float())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": math.nan}, "scale is nan"),
        ({"scale": math.inf}, "scale is inf"),
        ({"scale": 1.0, "entropy_limit": 0.5}, "entropy_limit is 0.5"),
        ({"scale": 1.0, "entropy_limit": math.nan}, "entropy_limit is nan"),
        ({"scale": 1.0, "cap": -1.0}, "cap is -1"),
        ({"scale": 1.0, "label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ],
)
def test_values_outside_their_range(options, said):
    with pytest.raises(ValueError, match=said):
        Strength(**options)


def test_a_gradient_that_is_not_finite_is_said_with_sigma_and_image():
    classifier = noisy_classifier()
    broken = classifier.network.out[0].weight
    x = images(dtype=torch.float32)
    broken.data[0] = math.nan
    with pytest.raises(ValueError, match=r"gradient is not finite at sigma 2 in image 0"):
        term(classifier, x)


def test_an_image_that_is_not_finite_is_said_too():
    x = images(dtype=torch.float32)
    x[1, 0, 0, 0] = math.nan
    sigma = torch.tensor([1.0, 2.5, 3.0])
    with pytest.raises(ValueError, match=r"image itself is not finite at sigma 2\.5 in image 1"):
        term(noisy_classifier(), x, sigma)
