"""Guidance against a mixture of Gaussians, where every expectation has a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from guidance import NoisyClassifier
from guidance.classifier_free import classifier_free, implicit_gradient
from guidance.classifier_guidance import classifier_term, guide_denoised
from guidance.noise import NoiseSchedule
from guidance.strength import Strength

MEANS = torch.tensor([[-1.0, 0.3], [-0.4, 1.2], [0.9, 0.8], [1.1, -0.9], [0.2, -1.3]]).double()
CLASS = torch.tensor([0, 0, 1, 1, 2])  # of each component
WEIGHTS = torch.tensor([0.3, 0.1, 0.25, 0.2, 0.15]).double()
SPREAD = 0.35
CUSTOM = torch.linspace(0.995, 0.001, 300, dtype=torch.float64) ** 1.5


def log_joint(x, sigma, alpha):
    """log p(x, component), (B, 5), for x = alpha x0 + sigma eps."""
    variance = (alpha * SPREAD) ** 2 + sigma**2
    distance = (x[:, None] - alpha * MEANS).square().sum(dim=2)
    return WEIGHTS.log() - 0.5 * distance / variance


def denoised(x, sigma, alpha, label=None):
    """E[x0 | x], or E[x0 | x, label]: the posterior's mix of each component's own."""
    log_p = log_joint(x, sigma, alpha)
    if label is not None:
        log_p = log_p.masked_fill(label != CLASS, -torch.inf)
    share = log_p.softmax(dim=1)
    gain = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
    each = MEANS + gain * (x[:, None] - alpha * MEANS)
    return (share[..., None] * each).sum(dim=1)


def score(x, sigma, alpha, label=None):
    """grad log p(x), or grad log p(x | label), without autograd."""
    log_p = log_joint(x, sigma, alpha)
    if label is not None:
        log_p = log_p.masked_fill(label != CLASS, -torch.inf)
    variance = (alpha * SPREAD) ** 2 + sigma**2
    each = (alpha * MEANS - x[:, None]) / variance
    return (log_p.softmax(dim=1)[..., None] * each).sum(dim=1)


class ExactClassifier(nn.Module):
    """log p(y | x_t) in the ADM convention: x_vp and a timestep, which tells the noise."""

    def __init__(self, schedule):
        super().__init__()
        self.log_ratios = schedule.ratios.log()

    def forward(self, x_vp, t):
        low = t.long().clamp(max=len(self.log_ratios) - 2)
        near, far = self.log_ratios[low], self.log_ratios[low + 1]
        ratio = torch.lerp(near, far, (t - low).to(near)).exp()
        alpha = 1 / (1 + ratio**2).sqrt()
        rows = [
            log_joint(x[None], s, a)[0] for x, s, a in zip(x_vp, ratio * alpha, alpha, strict=True)
        ]
        joint = torch.stack(rows)
        return torch.stack([joint[:, k == CLASS].logsumexp(dim=1) for k in range(3)], dim=1)


def classifier_of(schedule):
    schedule = NoiseSchedule(schedule)
    return NoisyClassifier(ExactClassifier(schedule), schedule)


@pytest.fixture(params=["linear", "cosine", "custom"])
def classifier(request):
    return classifier_of(CUSTOM if request.param == "custom" else request.param)


def points(sigma, alpha, count=40):
    generator = torch.Generator().manual_seed(2)
    x0 = MEANS[torch.randint(0, 5, (count,), generator=generator)]
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return alpha * x0 + (sigma**2 + (alpha * SPREAD) ** 2) ** 0.5 * noise


VE = [(sigma, 1.0) for sigma in (0.15, 0.5, 1.0, 2.7, 9.0)]
FLOW = [(sigma, 1 - sigma) for sigma in (0.12, 0.4, 0.75, 0.93)]


def through(kind, x, sigma, alpha):
    """What a network of that kind puts out, turned back into the denoised image."""
    x0 = denoised(x, sigma, alpha)
    if kind == "eps":
        output = (x - x0) / sigma
        return x - sigma * output
    if kind == "v":
        c_skip, c_out = 1 / (1 + sigma**2), sigma / (1 + sigma**2) ** 0.5
        output = (c_skip * x - x0) / c_out
        return c_skip * x - c_out * output
    if kind == "edm":
        data = 0.5
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / (sigma**2 + data**2) ** 0.5
        output = (x0 - c_skip * x) / c_out
        return c_skip * x + c_out * output
    if kind == "flow":
        velocity = (x - x0) / sigma
        return x - sigma * velocity
    return x0


CASES = [(kind, *level) for kind in ("eps", "v", "edm", "x0") for level in VE]
CASES += [("flow", *level) for level in FLOW]


@pytest.mark.parametrize(("kind", "sigma", "alpha"), CASES)
def test_scale_one_is_the_conditional_expectation(classifier, kind, sigma, alpha):
    x = points(sigma, alpha)
    for label in range(3):
        plain = through(kind, x, sigma, alpha)
        term = classifier_term(classifier, x, plain, sigma, label, Strength(scale=1.0), alpha)
        expected = denoised(x, sigma, alpha, label)
        assert (expected - plain).abs().max() > 1e-3
        assert (plain + term - expected).abs().max() < 1e-10


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
    assert (guided - classifier_free(cond, uncond, weight)).abs().max() < 1e-10
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
    exact = MEANS[CLASS == 0].mul((WEIGHTS[:2] / 0.4)[:, None]).sum(dim=0) - (
        WEIGHTS[:, None] * MEANS
    ).sum(dim=0)
    assert (terms[-1] - exact).abs().max() < 0.05
    steps = [(b - a).abs().max() for a, b in zip(terms, terms[1:], strict=False)]
    assert max(steps[3:]) < 0.02


@pytest.mark.parametrize("sigma", [200.0, 2e3, 2e4])
def test_beyond_the_classifiers_range_the_term_stays_of_the_datas_size(sigma):
    x = points(sigma, 1.0)
    term = classifier_term(classifier_of("linear"), x, x, sigma, 2, Strength(scale=1.0))
    exact = denoised(x, sigma, 1.0, 2) - denoised(x, sigma, 1.0)
    assert (term - exact).abs().max() < 0.05
