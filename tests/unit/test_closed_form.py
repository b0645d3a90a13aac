"""Guidance against a mixture of Gaussians, where every expectation has a closed form."""

from __future__ import annotations

import pytest
import torch
from mixture import ExactClassifier, class_mean, denoised, points, score
from tiny_networks import guidance_term, images

from guidance import NoisyClassifier
from guidance.core.noise import NoiseSchedule
from guidance.sampling.cfg import classifier_free
from guidance.sampling.classifier_guidance import guide_denoised

CUSTOM = torch.linspace(0.995, 0.001, 300, dtype=torch.float64) ** 1.5


def classifier_of(schedule):
    schedule = NoiseSchedule(schedule)
    return NoisyClassifier(ExactClassifier(schedule), schedule)


@pytest.fixture(params=["linear", "cosine", "custom"])
def classifier(request):
    return classifier_of(CUSTOM if request.param == "custom" else request.param)


VE = [(sigma, 1.0) for sigma in (0.15, 0.5, 1.0, 2.7, 9.0)]
FLOW = [(sigma, 1 - sigma) for sigma in (0.12, 0.4, 0.75, 0.93)]


@pytest.mark.parametrize(("sigma", "alpha"), [*VE, *FLOW])
def test_scale_one_is_the_conditional_expectation(classifier, sigma, alpha):
    x = points(sigma, alpha)
    plain = denoised(x, sigma, alpha)
    for label in range(3):
        term = guidance_term(classifier, x, plain, sigma, label, alpha)
        expected = denoised(x, sigma, alpha, label)
        assert (expected - plain).abs().max() > 1e-3
        assert (plain + term - expected).abs().max() < 1e-10


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, -1.0])
@pytest.mark.parametrize(("sigma", "alpha"), [(1.3, 1.0), (0.6, 0.4)])
def test_guided_score_is_that_of_the_tilted_density(classifier, scale, sigma, alpha):
    """p(x) p(y | x)^s; grad log p(y | x) = grad log p(x | y) - grad log p(x)."""
    x = points(sigma, alpha)
    plain = denoised(x, sigma, alpha)
    term = guidance_term(classifier, x, plain, sigma, 1, alpha, scale)
    got = (alpha * (plain + term) - x) / sigma**2
    free = score(x, sigma, alpha)
    expected = free + scale * (score(x, sigma, alpha, 1) - free)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (got - expected).abs().max() < 1e-10


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0, 4.5])
@pytest.mark.parametrize(("sigma", "alpha"), [*VE, *FLOW])
def test_cfg_is_guidance_by_the_implicit_classifier(weight, sigma, alpha):
    """log p(y | x) = log p(x | y) - log p(x) and a constant."""
    x = points(sigma, alpha)
    cond, uncond = denoised(x, sigma, alpha, 2), denoised(x, sigma, alpha)
    gradient = score(x, sigma, alpha, 2) - score(x, sigma, alpha)
    guided = guide_denoised(uncond, gradient, sigma, weight, alpha)
    by_classifier = guidance_term(classifier_of("linear"), x, uncond, sigma, 2, alpha, weight)
    free = classifier_free(cond, uncond, weight)
    assert (guided - free).abs().max() < 1e-10
    assert (uncond + by_classifier - free).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_start_of_a_flow_is_finite_and_continuous(schedule):
    """alpha is 0 at sigma 1; the classifier's range ends a little before."""
    classifier = classifier_of(schedule)
    x = points(1.0, 0.0)
    levels = [1 - gap for gap in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6, 0.0)]
    terms = [guidance_term(classifier, x, x, sigma, 0, 1 - sigma) for sigma in levels]
    assert all(term.isfinite().all() for term in terms)
    exact = class_mean(0) - class_mean()
    assert (terms[-1] - exact).abs().max() < 0.05
    steps = [(b - a).abs().max() for a, b in zip(terms, terms[1:], strict=False)]
    assert max(steps[3:]) < 0.02


@pytest.mark.parametrize("sigma", [200.0, 2e3, 2e4])
def test_beyond_the_classifiers_range_the_term_stays_of_the_datas_size(sigma):
    x = points(sigma, 1.0)
    term = guidance_term(classifier_of("linear"), x, x, sigma, 2)
    exact = denoised(x, sigma, 1.0, 2) - denoised(x, sigma, 1.0)
    assert (term - exact).abs().max() < 0.05


def test_each_image_can_have_its_own_scale_and_noise():
    uncond, gradient = images(dtype=torch.float64), images(dtype=torch.float64, seed=4)
    sigma, scale = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, -3.0]).double()
    alpha = torch.tensor([0.5, 0.25]).double()
    guided = guide_denoised(uncond, gradient, sigma, scale, alpha)
    free = classifier_free(gradient, uncond, scale)
    for index, (factor, weight) in enumerate(((1.0, 0.5), (-3.0, 16.0))):
        one, two = uncond[index], gradient[index]
        assert torch.allclose(guided[index], one + factor * weight * two, atol=1e-13)
        assert torch.allclose(free[index], one + factor * (two - one), atol=1e-13)
    assert torch.equal(classifier_free(gradient, uncond, 0.0), uncond)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_guidance_keeps_the_images_dtype_and_multiplies_in_fp32(dtype):
    """A factor of 1e-9 is below half precision's numbers; its product with 60,000 is not."""
    large = torch.full((2, 1), 6e4).to(dtype)
    factor = torch.tensor([1e-9, 1e-9], dtype=torch.float64)
    found = guide_denoised(torch.zeros_like(large), large, factor**0.5, 1.0)
    assert found.dtype == dtype
    assert found.float().ravel().tolist() == pytest.approx([6e-5] * 2, rel=0.01)
