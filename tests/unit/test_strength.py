"""The options that shape the scale: entropy-aware scale, cap, label smoothing, schedules."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import CLASSES, SmoothClassifier, guidance_term, images, noisy_classifier

from guidance import GuidanceSchedule, NoisyClassifier
from guidance.classifiers.base import SamplingPoint, Target
from guidance.sampling.classifier_guidance import Guide, guide_denoised
from guidance.sampling.classifier_guidance import guidance_term as guidance_term_of
from guidance.sampling.strength import (
    Strength,
    cap_factor,
    entropy_factor,
    normalized_weight,
)
from guidance.schedules.run_position import RunPosition

POSITION = RunPosition(percent=0.5, step=1.0, steps=3, sigma=1.0)
LABELS = torch.tensor([0, 2, 1])
UNEVEN = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25] * 4]).log()
TERM = torch.tensor([[[3.0, 4.0]], [[30.0, 40.0]], [[0.0, 1.0]]])
DENOISED = torch.tensor([[[6.0, 8.0]], [[6.0, 8.0]], [[0.0, 2.0]]])


@pytest.fixture
def classifier():
    return NoisyClassifier(SmoothClassifier(), "linear")


def term(classifier, x, sigma=2.0, denoised=None, **options):
    denoised = torch.ones_like(x) if denoised is None else denoised
    return guidance_term(classifier, x, denoised, sigma, LABELS, **{"scale": 1.5} | options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": math.nan}, "scale is nan; .* finite"),
        ({"scale": math.inf}, "scale is inf; .* finite"),
        ({"scale": (1.0, math.nan)}, r"scale is \(1.0, nan\); .* finite"),
        ({"entropy_limit": 0.99}, r"entropy_limit is 0.99; .* 1 \(off\) or more"),
        ({"entropy_limit": math.nan}, "entropy_limit is nan"),
        ({"cap": -0.01}, r"cap is -0.01; .* 0 \(off\) or more"),
        ({"cap": math.nan}, "cap is nan"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1.0; .* below 1"),
        ({"label_smoothing": -0.01}, "label_smoothing is -0.01"),
    ],
)
def test_options_outside_their_range(options, said):
    with pytest.raises(ValueError, match=said):
        Strength(**{"scale": 1.0} | options)


def test_options_at_the_ends_of_their_range():
    off = Strength(scale=(-1.0, 0.0), entropy_limit=1.0, cap=0.0, label_smoothing=0.0)
    assert off == Strength(scale=(-1.0, 0.0))
    Strength(scale=1.0, entropy_limit=math.inf, cap=9.0, label_smoothing=0.999)


def test_each_image_has_its_scale_and_its_factor():
    scales = Strength(scale=2.5).scales(UNEVEN.double())
    assert scales.dtype == torch.float64 and scales.tolist() == [2.5, 2.5, 2.5]
    assert Strength(scale=(2.5,)).scales(UNEVEN).tolist() == [2.5, 2.5, 2.5]
    each = Strength(scale=(1.0, -2.0, 3.0)).scales(UNEVEN)
    assert each.dtype == torch.float32 and each.tolist() == [1, -2, 3]
    entropic = Strength(scale=(1.0, -2.0, 3.0), entropy_limit=5.0).scales(UNEVEN)
    assert entropic.tolist() == pytest.approx([2.0, -10.0, 3.0])


@pytest.mark.parametrize(
    ("scale", "is_on"), [(2.0, True), (-1.0, True), (0.0, False), ((0.0, 3.0), True)]
)
def test_a_scale_of_zero_is_off(classifier, scale, is_on):
    strength = Strength(scale=scale)
    assert strength.is_on == is_on
    assert not Strength(scale=(0.0, 0.0)).is_on
    guide = Guide(classifier, LABELS, strength)
    assert guide.at(None, 3) is (guide if is_on else None)


def test_a_schedule_takes_the_place_of_the_scale(classifier):
    rising = GuidanceSchedule.ramp("percent", [(0.0, 2.0), (1.0, 6.0)])
    options = {"entropy_limit": 2.0, "cap": 0.5, "label_smoothing": 0.1}
    before = Strength(scale=9.0, **options)
    guide = Guide(classifier, LABELS, before, rising).at(POSITION, 3)
    assert guide.strength == Strength(scale=4.0, **options)
    each = GuidanceSchedule(rising.curve, per_image=(1.0, 0.0, -0.5))
    guide = Guide(classifier, LABELS, before, each).at(POSITION, 3)
    assert guide.strength.scale == (4.0, 0.0, -2.0) and guide.classifier is classifier
    nothing = GuidanceSchedule.constant(0.0)
    assert Guide(classifier, LABELS, before, nothing).at(POSITION, 3) is None


@pytest.mark.parametrize(
    ("probs", "factor"),
    [
        ([0.25] * 4, 1.0),
        ([0.5, 0.5, 0.0, 0.0], 2.0),
        ([1.0, 0.0, 0.0, 0.0], 7.0),
        ([0.7, 0.1, 0.1, 0.1], math.log(4) / -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))),
        ([0.4, 0.4, 0.4], 1.0),  # more entropy than there can be
    ],
)
def test_entropy_factor(probs, factor):
    log_probs = torch.tensor([probs], dtype=torch.float64).log()
    found = entropy_factor(log_probs, 7.0)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("value", [-30.0, 0.0, 5.3, 1e4])
def test_a_single_class_or_score_has_the_factor_1(value):
    assert entropy_factor(torch.tensor([[value]]), 7.0).item() == 1.0


def test_the_entropy_factor_in_half_precision():
    """The entropy of a nearly sure p is too small for half precision."""
    nearly = torch.tensor([[1 - 1e-3, 1e-3]]).log()
    exact = math.log(2) / -(1e-3 * math.log(1e-3) + (1 - 1e-3) * math.log(1 - 1e-3))
    assert float(entropy_factor(nearly, 1e6)) == pytest.approx(exact, rel=1e-3)
    half = entropy_factor(nearly.half(), 1e6)
    assert half.dtype == torch.float32 and float(half) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    ("cap", "factors"), [(0.5, [1.0, 0.1, 1.0]), (0.25, [0.5, 0.05, 0.5]), (9.0, [1, 1, 1])]
)
def test_the_cap_is_a_share_of_the_images_length(cap, factors):
    assert cap_factor(TERM, DENOISED, cap).tolist() == pytest.approx(factors)


def test_a_capped_term():
    assert Strength(scale=1.0).capped(TERM, DENOISED) is TERM
    short = Strength(scale=1.0, cap=0.5).capped(TERM, DENOISED)
    assert torch.allclose(short, torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]], [[0.0, 1.0]]]))


def test_the_cap_of_nothing_and_of_half_precision():
    zero, large = torch.zeros(2, 3), torch.full((1, 2), 60000.0, dtype=torch.float16)
    assert torch.equal(cap_factor(zero, zero, 0.5), torch.ones(2))
    assert torch.equal(cap_factor(torch.ones(2, 3), zero, 0.5), torch.zeros(2))
    assert float(cap_factor(large, large, 0.5)) == pytest.approx(0.5)


def test_options_in_the_guidance_term(classifier):
    x = images(3, torch.float64)
    gradient, log_probs = classifier.gradient_and_log_probs(x, 2.0, Target(LABELS))
    plain = term(classifier, x)
    assert torch.allclose(x + plain, guide_denoised(x, gradient, 2.0, 1.5), rtol=0, atol=1e-12)
    factor = entropy_factor(log_probs, 1.3)
    assert len(set(factor.tolist())) > 1
    entropic = term(classifier, x, entropy_limit=1.3)
    assert torch.allclose(entropic, plain * factor[:, None, None, None], rtol=1e-10)
    denoised = torch.ones_like(x)
    denoised[1] *= 1e6  # far over its term: left as it is
    capped = term(classifier, x, denoised=denoised, scale=50.0, cap=0.01)
    free = term(classifier, x, denoised=denoised, scale=50.0)
    assert torch.equal(capped, free * cap_factor(free, denoised, 0.01)[:, None, None, None])
    assert torch.equal(capped[1], free[1]) and not torch.equal(capped[0], free[0])


def test_label_smoothing_mixes_the_classes_gradients(classifier):
    """The gradient of sum_k q_k log p_k is that mixture of the gradients of log p_k."""
    x = images(3, torch.float64)
    each = torch.stack([classifier.gradient(x, 2.0, k) for k in range(CLASSES)], dim=1)
    weights = torch.full((3, CLASSES), 0.1, dtype=torch.float64)
    weights[torch.arange(3), LABELS] += 0.7
    mixed = (weights[..., None, None, None] * each).sum(dim=1)
    got, _ = classifier.gradient_and_log_probs(x, 2.0, Target(LABELS, 0.3))
    assert torch.allclose(got, mixed, atol=1e-7)
    smoothed = term(classifier, x, label_smoothing=0.3)
    assert torch.allclose(smoothed, 1.5 * 4 * mixed, atol=1e-6)


def test_the_report_has_the_scales_the_term_and_all_log_probs(classifier):
    x, seen = images(3, torch.float64), []
    guide = Guide(classifier, LABELS, Strength(scale=(1.0, 2.0, 0.0), cap=0.01))
    point = SamplingPoint.at(x, x, 2.0)
    found = guide.term(point, report=lambda *values: seen.append(values))
    ((scales, reported, output),) = seen
    assert scales.tolist() == [1, 2, 0] and reported is found
    assert torch.allclose(output.log_probs, classifier.log_probs(x, 2.0))


def test_what_is_not_finite_is_an_error_at_once():
    x, classifier = images(3), noisy_classifier()
    classifier.network.out[0].weight.data[0] = math.nan
    with pytest.raises(ValueError, match=r"gradient is not finite at sigma 2 in image 0"):
        term(classifier, x)


@pytest.mark.parametrize(("sigma", "alpha"), [(2.0, 1.0), (0.3, 0.7), (1.0, 0.0)])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e10])
def test_normalised_guidance_has_the_size_of_its_scale(classifier, sigma, alpha, size):
    """rms(term) = scale * sigma / sqrt(alpha^2 + sigma^2), along the gradient; none of zeros."""
    gradient = images(3, dtype=torch.float32)
    gradient[2] = 0
    levels = torch.tensor([sigma] * 3).double(), torch.tensor([alpha] * 3).double()
    weight = normalized_weight(gradient * size, *levels)
    found = guidance_term_of(gradient * size, weight, torch.tensor([1.0, -0.5, 1.0]))
    rms = found.flatten(1).square().mean(dim=1).sqrt()
    r = sigma / math.hypot(sigma, alpha)
    assert rms.tolist() == pytest.approx([r, 0.5 * r, 0], rel=1e-5)
    sides = (found * gradient).flatten(1).sum(dim=1)
    assert sides[0] > 0 > sides[1]


def test_normalised_guidance_through_a_classifier(classifier):
    """Only the direction of the term stays, and its own scale."""
    x = images(3, dtype=torch.float64)
    plain = term(classifier, x, sigma=2.0)
    found = term(classifier, x, sigma=2.0, normalize=True)
    unit = plain / plain.flatten(1).square().mean(dim=1).sqrt().view(-1, 1, 1, 1)
    assert (found - 1.5 * 2 / 5**0.5 * unit).abs().max() < 1e-6
