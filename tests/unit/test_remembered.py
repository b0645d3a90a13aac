"""A classifier whose last answer serves some evaluations."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import SIZE, diffusion_model, noisy_classifier

from guidance.classifiers.gradient_cache import CachedClassifier, Memory, cached_classifier
from guidance.evaluation.compute_cost import count_compute
from guidance.sampling.generate import SamplingConfig, generate

STEPS = 12


@pytest.fixture(scope="module")
def draw():
    """Images, and the gradients for each of them."""
    model, classifier = diffusion_model(), noisy_classifier()

    def run(**options):
        job = {"num_samples": 3, "label": [0, 1, 2], "cfg": 0.0, "scale": 20.0}
        with count_compute(model, classifier) as work:
            job = SamplingConfig(**job | {"respacing": f"{STEPS}"} | options)
            images, _ = generate(model, classifier, job)
        return torch.from_numpy(images), work.gradients / 3

    return run


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
@pytest.mark.parametrize("every, gradients", [(1, 12), (2, 6), (5, 3), (100, 1)])
def test_gradients_that_are_computed(draw, method, every, gradients):
    images, found = draw(every=every, method=method)
    assert found == gradients
    assert torch.equal(images, draw(every=every, method=method)[0])


def test_always_is_nothing_new(draw):
    classifier = noisy_classifier()
    assert cached_classifier(classifier, 1) is classifier
    assert not torch.equal(draw()[0], draw(every=4)[0])


def levels(sigma, alpha=1.0):
    return torch.full((2,), sigma), torch.full((2,), alpha)


def asked(classifier, x, sigma, alpha):
    return classifier.evidence(x, x, sigma, torch.tensor([0, 1]), alpha)


def test_the_gradient_stays_in_the_classifiers_coordinates():
    """What is used again at another level is the gradient in x_vp, as by the chain rule."""
    classifier = noisy_classifier()
    held = CachedClassifier(classifier, Memory(2))
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    first = asked(held, x, *levels(2.0))
    torch.testing.assert_close(first.gradient, asked(classifier, x, *levels(2.0)).gradient)
    second = asked(held, x, *levels(0.5, 0.25))
    sizes = [(1 + 2.0**2) ** 0.5, (0.25**2 + 0.5**2) ** 0.5]
    torch.testing.assert_close(second.gradient * sizes[1], first.gradient * sizes[0])
    assert float(second.sigma[0]) == 0.5 and float(second.alpha[0]) == 0.25
    third = asked(held, x, *levels(0.5))
    torch.testing.assert_close(third.gradient, asked(classifier, x, *levels(0.5)).gradient)


def test_beyond_its_range_the_weights_are_the_ranges_end():
    held = CachedClassifier(noisy_classifier(), Memory(2))
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    asked(held, x, *levels(1.0))
    seen = asked(held, x, *levels(1.0, 0.0))
    assert bool(seen.gradient.isfinite().all()) and bool((seen.alpha > 0).all())


def test_images_of_another_size_are_asked_about():
    held = CachedClassifier(noisy_classifier(pool="adaptive"), Memory(9))
    for size in (SIZE, 2 * SIZE):
        assert asked(held, torch.zeros(2, 3, size, size), *levels(1.0)).gradient.shape[-1] == size


def test_what_cannot_be():
    with pytest.raises(ValueError, match="every is 0"):
        Memory(0)
