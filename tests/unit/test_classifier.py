"""The noisy classifier's gradient, and what both guidances do with it."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import CLASSES, NAMES, SIZE, SmoothClassifier, half_unet, noisy_classifier
from torch import nn

from guidance import (
    NoisyClassifier,
    classifier_free,
    guide_denoised,
    implicit_gradient,
)
from guidance.sampling.classifier_guidance import mean_shift


def images(batch=2, dtype=torch.float32, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, SIZE, SIZE, generator=generator, dtype=dtype)


def smooth():
    return NoisyClassifier(SmoothClassifier(), "linear", NAMES)


def slope(classifier, x, direction, sigma, label, alpha, h):
    """Central difference of the sum of log p(label | x) along `direction`."""
    ends = [classifier.log_probs(x + s * h * direction, sigma, alpha) for s in (1, -1)]
    return float((ends[0] - ends[1])[range(len(x)), label].double().sum() / (2 * h))


@pytest.mark.parametrize(("sigma", "alpha"), [(0.5, 1.0), (30.0, 1.0), (0.7, 0.3), (0.6, 0.8)])
def test_the_gradient_is_the_slope_in_double_precision(sigma, alpha):
    classifier, x, label = smooth(), images(dtype=torch.float64), torch.tensor([2, 0])
    gradient = classifier.gradient(x, sigma, label, alpha)
    for seed in range(3):
        direction = images(dtype=torch.float64, seed=seed)
        expected = slope(classifier, x, direction, sigma, label, alpha, 1e-5)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_the_gradient_is_the_slope_for_an_adm_classifier(pool):
    classifier, x, label = noisy_classifier(pool=pool), images(), torch.tensor([2, 0])
    gradient = classifier.gradient(x, 1.5, label)
    assert gradient.abs().max() > 0
    direction = gradient / gradient.norm()
    expected = slope(classifier, x, direction, 1.5, label, 1.0, 2e-2)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("make", [smooth, noisy_classifier])
def test_gradients_weighted_by_probability_cancel(make):
    classifier = make()
    x = images(dtype=torch.float64 if make is smooth else torch.float32)
    probs = classifier.log_probs(x, 2.0).exp()
    gradients = [classifier.gradient(x, 2.0, label) for label in range(CLASSES)]
    total = sum(probs[:, c].view(-1, 1, 1, 1) * g for c, g in enumerate(gradients))
    assert total.abs().max() < 1e-5 * max(g.abs().max() for g in gradients)
    assert torch.allclose(probs.sum(dim=1), torch.ones_like(probs[:, 0]))


def test_each_image_follows_its_own_label():
    classifier, x = smooth(), images(batch=3, dtype=torch.float64)
    together = classifier.gradient(x, 1.0, torch.tensor([0, 2, 1]))
    for index, label in enumerate([0, 2, 1]):
        alone = classifier.gradient(x[index : index + 1], 1.0, label)
        assert (together[index] - alone[0]).abs().max() < 1e-12


def test_one_label_serves_the_whole_batch():
    classifier, x = smooth(), images(batch=3, dtype=torch.float64)
    expected = classifier.gradient(x, 1.0, torch.tensor([2, 2, 2]))
    for label in (2, torch.tensor(2), torch.tensor([2])):
        assert torch.equal(classifier.gradient(x, 1.0, label), expected)


@pytest.mark.parametrize("label", [3, -1, torch.tensor([0, 3])])
def test_a_label_that_is_no_class_is_refused(label):
    with pytest.raises(ValueError, match="label is .*(3|-1).* from 0 to 2"):
        smooth().gradient(images(dtype=torch.float64), 1.0, label)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (0,)])
def test_labels_that_do_not_fit_the_batch_are_refused(shape):
    with pytest.raises(ValueError, match="label has shape .*expected one, or 2"):
        smooth().gradient(images(dtype=torch.float64), 1.0, torch.zeros(shape, dtype=torch.long))


def test_the_size_of_an_attention_pool_is_checked():
    with pytest.raises(ValueError, match="8x8.* is 16x4"):
        noisy_classifier().log_probs(torch.zeros(1, 3, 4, 16), 1.0)
    with pytest.raises(ValueError, match="multiples of 2; they are 9x8"):
        noisy_classifier(pool="adaptive").log_probs(torch.zeros(1, 3, 8, 9), 1.0)


def all_weights(network):
    return [*network.parameters(), *network.buffers()]


def copied_in_inference_mode(network):
    """What loading, moving and reloading do: every weight becomes an inference tensor."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.data.clone(), requires_grad=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_survives_inference_mode_and_reloads(dtype):
    x, sigma, label = images(), torch.tensor([0.5, 3.0]), torch.tensor([1, 2])
    expected = NoisyClassifier(half_unet().to(dtype), "linear").gradient(x, sigma, label)
    with torch.inference_mode():
        network = half_unet().to(dtype)
        copied_in_inference_mode(network)
        assert all(w.is_inference() for w in all_weights(network))
        classifier = NoisyClassifier(network, "linear")
        arguments = x.clone(), sigma.clone(), label.clone()
        assert all(a.is_inference() for a in arguments)
        first = classifier.gradient(*arguments)
        copied_in_inference_mode(network)
        assert all(w.is_inference() for w in all_weights(network))
        again = classifier.gradient(*arguments)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)


def test_the_gradient_survives_weights_created_and_moved_in_inference_mode():
    x = images(dtype=torch.float64)
    with torch.inference_mode():
        created = NoisyClassifier(SmoothClassifier(), "linear")
        first = created.gradient(x.clone(), 1.0, 1)
        created.network.float().double()
        moved = created.gradient(x.clone(), 1.0, 1)
    assert (first - smooth().gradient(x, 1.0, 1)).abs().max() < 1e-12
    assert (moved - first).abs().max() < 1e-5
    assert first.abs().max() > 0


def test_the_gradient_works_under_no_grad():
    x = images(dtype=torch.float64)
    with torch.no_grad():
        got = smooth().gradient(x, 1.0, 1)
    assert torch.equal(got, smooth().gradient(x, 1.0, 1))


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_nothing_is_left_behind(trainable, inference):
    x = images()
    with torch.inference_mode(inference):
        network = half_unet()
        network.requires_grad_(trainable)
        classifier = NoisyClassifier(network, "linear")
        gradient = classifier.gradient(x, 1.0, 1)
        log_probs = classifier.log_probs(x, 1.0)
    assert not gradient.requires_grad and gradient.grad_fn is None
    assert not log_probs.requires_grad
    assert not x.requires_grad and x.grad is None
    assert all(p.requires_grad == trainable and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_points_the_same_way(dtype):
    x, sigma, label = images(batch=3), torch.tensor([0.1, 2.0, 60.0]), torch.tensor([0, 1, 2])
    expected = noisy_classifier().gradient(x, sigma, label)
    half = NoisyClassifier(half_unet().to(dtype), "linear")
    got = half.gradient(x, sigma, label)
    assert got.dtype == torch.float32
    assert half.log_probs(x, sigma).dtype == torch.float32
    cosine = torch.cosine_similarity(got.flatten(1), expected.flatten(1))
    assert cosine.min() > 0.999
    length = got.flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert (length - 1).abs().max() < 0.05


class Sure(nn.Module):
    """All but certain of class 0: the gradient towards it nearly vanishes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x, t):
        guidance_update = (x * 1e-3 * self.weight).mean(dim=(1, 2, 3))
        return torch.stack([guidance_update + 9, -guidance_update], dim=1)


def test_small_gradients_do_not_underflow_in_fp16():
    x = images()
    expected = NoisyClassifier(Sure(), "linear").gradient(x, 1.0, 0)
    got = NoisyClassifier(Sure().half(), "linear").gradient(x, 1.0, 0)
    assert 0 < expected.abs().max() < torch.finfo(torch.float16).tiny
    assert (got != 0).all()
    assert (got / expected - 1).abs().max() < 0.2


def test_a_half_precision_image_keeps_its_dtype():
    x = images().half()
    for dtype in (torch.float32, torch.float16):
        gradient = NoisyClassifier(half_unet().to(dtype), "linear").gradient(x, 1.0, 0)
        assert (gradient.dtype, gradient.shape) == (torch.float16, x.shape)
        assert gradient.isfinite().all()


def test_a_classifier_tells_what_it_knows():
    classifier = noisy_classifier()
    assert (classifier.num_classes, classifier.channels) == (CLASSES, 3)
    assert classifier.name(2) == "zebra"
    unnamed = NoisyClassifier(half_unet(), "linear")
    assert (unnamed.num_classes, unnamed.name(2)) == (CLASSES, "2")
    unknown = NoisyClassifier(SmoothClassifier(), "linear")
    assert (unknown.num_classes, unknown.channels, unknown.name(2)) == (None, None, "2")


def test_labels_that_are_not_as_many_as_the_classes_are_refused():
    with pytest.raises(ValueError, match="labels names 2 classes; the network has 3"):
        NoisyClassifier(half_unet(), "linear", ("cat", "dog"))


def test_another_copy_of_the_network_keeps_everything_else():
    classifier = NoisyClassifier(half_unet(), "cosine", NAMES, "rgb")
    copy = classifier.with_network(half_unet(pool="spatial"))
    assert copy.schedule is classifier.schedule
    assert (copy.labels, copy.space) == (NAMES, "rgb")
    assert copy.layout.pool == "spatial"


GAUSSIAN_LEVELS = [
    *[pytest.param(1.0, s, id=f"VE {s}") for s in (0.01, 0.5, 3.0, 100.0)],
    *[pytest.param(1 - s, s, id=f"flow {s}") for s in (0.01, 0.5, 0.9, 0.99)],
]


@pytest.mark.parametrize(("alpha", "sigma"), GAUSSIAN_LEVELS)
@pytest.mark.parametrize("scale", [1.0, 2.5, -1.0])
def test_guidance_is_exact_for_a_gaussian_with_a_linear_likelihood(alpha, sigma, scale):
    """p(x0) = N(m, s^2 I), log p(y | x0) = a.x0 + b: then p(x0 | y) = N(m + s^2 a, s^2 I).

    A scale multiplies the likelihood's exponent, so it is exact for every scale.
    """
    m, a, x = (images(dtype=torch.float64, seed=seed) for seed in (1, 2, 3))
    s = 0.7
    variance = alpha**2 * s**2 + sigma**2
    gain = alpha * s**2 / variance

    def posterior_mean(prior_mean):
        return prior_mean + gain * (x - alpha * prior_mean)

    x_in = x.clone().requires_grad_(True)
    log_likelihood = (a * (m + gain * (x_in - alpha * m))).sum()
    (gradient,) = torch.autograd.grad(log_likelihood, x_in)
    guided = guide_denoised(posterior_mean(m), gradient, sigma, scale, alpha)
    expected = posterior_mean(m + scale * s**2 * a)
    assert (guided - posterior_mean(m)).abs().max() > 1e-6
    assert (guided - expected).abs().max() < 1e-10


def test_each_image_can_have_its_own_scale_and_noise():
    denoised, gradient = images(dtype=torch.float64), images(dtype=torch.float64, seed=4)
    sigma, scale = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, -3.0]).double()
    alpha = torch.tensor([0.5, 0.25]).double()
    together = guide_denoised(denoised, gradient, sigma, scale, alpha)
    for index in range(2):
        alone = guide_denoised(
            denoised[index], gradient[index], *(float(v[index]) for v in (sigma, scale, alpha))
        )
        assert torch.allclose(together[index], alone, atol=1e-14)


def test_guidance_keeps_the_images_dtype():
    half = images().half()
    sigma = torch.full((2,), 2.0, dtype=torch.float64)
    assert guide_denoised(half, half, sigma, 1.0).dtype == torch.float16


def test_algorithm_one_moves_the_mean_by_the_variance_times_the_gradient():
    gradient, variance = images(), images(seed=4).exp()
    assert torch.equal(mean_shift(gradient, variance, 2.0), 2 * variance * gradient)
    shifts = mean_shift(gradient, variance, torch.tensor([1.0, 3.0]))
    assert torch.equal(shifts[1], 3 * variance[1] * gradient[1])


def test_classifier_free_guidance_at_zero_and_one():
    cond, uncond = images(), images(seed=4)
    assert torch.equal(classifier_free(cond, uncond, 0.0), uncond)
    assert torch.allclose(classifier_free(cond, uncond, 1.0), cond, atol=1e-6)
    assert torch.allclose(classifier_free(cond, uncond, 3.0), 3 * cond - 2 * uncond, atol=1e-5)


def test_classifier_free_guidance_with_a_scale_for_each_image():
    cond, uncond = images(batch=3), images(batch=3, seed=4)
    got = classifier_free(cond, uncond, torch.tensor([0.0, 1.0, 7.5]))
    for index, scale in enumerate((0.0, 1.0, 7.5)):
        assert torch.equal(got[index], classifier_free(cond[index], uncond[index], scale))


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 3.0), (0.4, 0.6)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5])
def test_following_the_implicit_classifier_is_classifier_free_guidance(alpha, sigma, scale):
    cond, uncond = images(dtype=torch.float64), images(dtype=torch.float64, seed=4)
    gradient = implicit_gradient(cond, uncond, sigma, alpha)
    got = guide_denoised(uncond, gradient, sigma, scale, alpha)
    assert (got - classifier_free(cond, uncond, scale)).abs().max() < 1e-12


def test_the_implicit_classifier_takes_a_noise_level_for_each_image():
    cond, uncond = images(), images(seed=4)
    sigma, alpha = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.5])
    got = implicit_gradient(cond, uncond, sigma, alpha)
    assert torch.allclose(got[1], (cond - uncond)[1] * 0.5 / 4)
