"""Guidance against a mixture of Gaussians, where every expectation has a closed form."""

from __future__ import annotations

import pytest
import torch
from mixture import ExactClassifier, class_mean, denoised, network_output, points, score

from guidance import NoisyClassifier
from guidance.core.noise import NoiseSchedule
from guidance.sampling import classifier_guidance
from guidance.sampling.cfg import classifier_free, implicit_gradient
from guidance.sampling.classifier_guidance import classifier_term, guide_denoised
from guidance.sampling.strength import Strength

CUSTOM = torch.linspace(0.995, 0.001, 300, dtype=torch.float64) ** 1.5


def classifier_of(schedule):
    schedule = NoiseSchedule(schedule)
    return NoisyClassifier(ExactClassifier(schedule), schedule)


@pytest.fixture(params=["linear", "cosine", "custom"])
def classifier(request):
    return classifier_of(CUSTOM if request.param == "custom" else request.param)


VE = [(sigma, 1.0) for sigma in (0.15, 0.5, 1.0, 2.7, 9.0)]
FLOW = [(sigma, 1 - sigma) for sigma in (0.12, 0.4, 0.75, 0.93)]


def read(kind, output, x, sigma):
    """The denoised image that a sampler reads from a network's output."""
    data = 0.5
    total = sigma**2 + data**2
    return {
        "eps": lambda: x - sigma * output,
        "v": lambda: x / (1 + sigma**2) - output * sigma / (1 + sigma**2) ** 0.5,
        "edm": lambda: x * data**2 / total + output * sigma * data / total**0.5,
        "x0": lambda: output,
        "flow": lambda: x - sigma * output,
    }[kind]()


CASES = [(kind, *level) for kind in ("eps", "v", "edm", "x0") for level in VE]
CASES += [("flow", *level) for level in FLOW]


@pytest.mark.parametrize(("kind", "sigma", "alpha"), CASES)
def test_scale_one_is_the_conditional_expectation(classifier, kind, sigma, alpha):
    x = points(sigma, alpha)
    for label in range(3):
        plain = read(kind, network_output(kind, x, sigma, alpha), x, sigma)
        term = classifier_term(classifier, x, plain, sigma, label, Strength(scale=1.0), alpha)
        expected = denoised(x, sigma, alpha, label)
        assert (expected - plain).abs().max() > 1e-3
        assert (plain + term - expected).abs().max() < 1e-10


WRONG = {
    "sigma": lambda sigma, alpha: sigma,
    "sigma^2 without alpha": lambda sigma, alpha: sigma**2,
    "sigma^2 alpha": lambda sigma, alpha: sigma**2 * alpha,
    "five per cent more": lambda sigma, alpha: 1.05 * sigma**2 / alpha,
    "its negative": lambda sigma, alpha: -(sigma**2) / alpha,
}


@pytest.mark.parametrize("factor", WRONG)
def test_a_wrong_factor_would_be_seen(monkeypatch, factor):
    """What the test above is worth."""

    def wrong(gradient, sigma, scale, alpha):
        return (scale * WRONG[factor](sigma, alpha))[:, None] * gradient

    monkeypatch.setattr(classifier_guidance, "guidance_term", wrong)
    sigma, alpha = 0.4, 0.6
    x = points(sigma, alpha)
    plain, expected = denoised(x, sigma, alpha), denoised(x, sigma, alpha, 1)
    term = classifier_term(classifier_of("linear"), x, plain, sigma, 1, Strength(scale=1.0), alpha)
    assert (plain + term - expected).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, -1.0])
@pytest.mark.parametrize(("sigma", "alpha"), [(1.3, 1.0), (0.6, 0.4)])
def test_guided_score_is_that_of_the_tilted_density(classifier, scale, sigma, alpha):
    """p(x) p(y | x)^s; grad log p(y | x) = grad log p(x | y) - grad log p(x)."""
    x = points(sigma, alpha)
    plain = denoised(x, sigma, alpha)
    term = classifier_term(classifier, x, plain, sigma, 1, Strength(scale=scale), alpha)
    got = (alpha * (plain + term) - x) / sigma**2
    free = score(x, sigma, alpha)
    expected = free + scale * (score(x, sigma, alpha, 1) - free)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (got - expected).abs().max() < 1e-10


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0, 4.5])
@pytest.mark.parametrize(("sigma", "alpha"), [*VE, *FLOW])
def test_cfg_is_guidance_by_the_implicit_classifier(weight, sigma, alpha):
    x = points(sigma, alpha)
    cond, uncond = denoised(x, sigma, alpha, 2), denoised(x, sigma, alpha)
    gradient = implicit_gradient(cond, uncond, sigma, alpha)
    guided = guide_denoised(uncond, gradient, sigma, weight, alpha)
    by_classifier = classifier_term(
        classifier_of("linear"), x, uncond, sigma, 2, Strength(scale=weight), alpha
    )
    free = classifier_free(cond, uncond, weight)
    assert (guided - free).abs().max() < 1e-10
    assert (uncond + by_classifier - free).abs().max() < 1e-10
    exact = score(x, sigma, alpha, 2) - score(x, sigma, alpha)
    assert (gradient - exact).abs().max() < 1e-10 * max(1, exact.abs().max())


def test_probabilities_weigh_the_gradients_to_nothing(classifier):
    x = points(1.0, 1.0)
    p = classifier.log_probs(x, 1.0).exp()
    mixed = sum(p[:, k, None] * classifier.gradient(x, 1.0, k) for k in range(3))
    assert mixed.abs().max() < 1e-12


def test_a_batch_is_its_images_alone_in_any_order(classifier):
    x = points(1.0, 1.0, 6)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    sigma = torch.tensor([0.2, 0.5, 1.0, 2.0, 4.0, 8.0]).double()
    whole = classifier.gradient(x, sigma, labels)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(classifier.gradient(x[order], sigma[order], labels[order]), whole[order])
    for index in range(6):
        one = slice(index, index + 1)
        alone = classifier.gradient(x[one], sigma[one], labels[one])
        assert (alone - whole[one]).abs().max() < 1e-12


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_start_of_a_flow_is_finite_and_continuous(schedule):
    """alpha is 0 at sigma 1; the classifier's range ends a little before."""
    classifier = classifier_of(schedule)
    x = points(1.0, 0.0)
    levels = [1 - gap for gap in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6, 0.0)]
    terms = [
        classifier_term(classifier, x, x, sigma, 0, Strength(scale=1.0), 1 - sigma)
        for sigma in levels
    ]
    assert all(term.isfinite().all() for term in terms)
    exact = class_mean(0) - class_mean()
    assert (terms[-1] - exact).abs().max() < 0.05
    steps = [(b - a).abs().max() for a, b in zip(terms, terms[1:], strict=False)]
    assert max(steps[3:]) < 0.02


@pytest.mark.parametrize("sigma", [200.0, 2e3, 2e4])
def test_beyond_the_classifiers_range_the_term_stays_of_the_datas_size(sigma):
    x = points(sigma, 1.0)
    term = classifier_term(classifier_of("linear"), x, x, sigma, 2, Strength(scale=1.0))
    exact = denoised(x, sigma, 1.0, 2) - denoised(x, sigma, 1.0)
    assert (term - exact).abs().max() < 0.05
