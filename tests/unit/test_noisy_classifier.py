"""The noisy classifier: its gradient, in every coordinates, precision and mode of torch."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import CLASSES, NAMES, SmoothClassifier, half_unet, images, noisy_classifier
from torch import nn

from guidance import NoisyClassifier
from guidance.classifiers.base import SamplingPoint, Target, class_name


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


def test_each_image_has_its_own_label_and_noise_level():
    classifier, x = smooth(), images(batch=3, dtype=torch.float64)
    labels, sigma = torch.tensor([0, 2, 1]), torch.tensor([0.1, 1.0, 30.0]).double()
    alpha = torch.tensor([1.0, 0.5, 0.2]).double()
    together = classifier.gradient_and_log_probs(x, sigma, Target(labels), alpha)
    for index in range(3):
        levels = float(sigma[index]), Target(int(labels[index])), float(alpha[index])
        alone = classifier.gradient_and_log_probs(x[index : index + 1], *levels)
        for one, whole in zip(alone, together, strict=True):
            assert (whole[index] - one[0]).abs().max() < 1e-12
    expected = classifier.gradient(x, 1.0, torch.tensor([2, 2, 2]))
    for label in (2, torch.tensor(2), torch.tensor([2])):
        assert torch.equal(classifier.gradient(x, 1.0, label), expected)


@pytest.mark.parametrize("space", ["ve", "flow"])
@pytest.mark.parametrize("sigma_vp", [0.02, 0.3, 0.8, 0.999])
def test_a_point_means_the_same_in_every_coordinates(space, sigma_vp):
    alpha_vp = (1 - sigma_vp**2) ** 0.5
    ratio = sigma_vp / alpha_vp
    alpha = 1.0 if space == "ve" else 1 / (1 + ratio)
    factor = alpha / alpha_vp
    classifier, label = smooth(), torch.tensor([0, 2])
    x_vp = images(dtype=torch.float64)
    expected = classifier.log_probs(x_vp, sigma_vp, alpha_vp)
    found = classifier.log_probs(factor * x_vp, ratio * alpha, alpha)
    assert (found - expected).abs().max() < 1e-10
    by_chain_rule = classifier.gradient(x_vp, sigma_vp, label, alpha_vp) / factor
    got = classifier.gradient(factor * x_vp, ratio * alpha, label, alpha)
    assert by_chain_rule.abs().max() > 1e-5
    assert (got - by_chain_rule).abs().max() < 1e-10


def test_pure_noise_is_read_at_the_last_timestep():
    classifier, x = smooth(), images(dtype=torch.float64)
    at_the_end = classifier.network(x, torch.full((2,), 999.0)).log_softmax(dim=-1)
    assert (classifier.log_probs(x, 1.0, 0.0) - at_the_end).abs().max() < 1e-12
    assert classifier.gradient(x, 1.0, 0, 0.0).isfinite().all()
    clean = classifier.network(x, torch.zeros(2)).log_softmax(dim=-1)
    assert (classifier.image_log_probs(x) - clean).abs().max() < 1e-12


@pytest.mark.parametrize(("sigma", "alpha"), [(0.5, 1.0), (0.6, 0.4), (20000.0, 1.0), (1.0, 0.0)])
def test_the_output_has_tweedies_weight_and_the_schedules_levels(sigma, alpha):
    classifier, x = smooth(), images(dtype=torch.float64)
    found = classifier.output(SamplingPoint.at(x, x, sigma, alpha), Target(1, 0.25))
    if sigma <= alpha * classifier.schedule.max_ratio:
        level = sigma, alpha
    else:
        size, ratio = (sigma**2 + alpha**2) ** 0.5, classifier.schedule.max_ratio
        level = size * ratio / (1 + ratio**2) ** 0.5, size / (1 + ratio**2) ** 0.5
    assert found.sigma.tolist() == pytest.approx([level[0]] * 2, rel=1e-12)
    assert found.alpha.tolist() == pytest.approx([level[1]] * 2, rel=1e-12)
    assert found.weight.tolist() == pytest.approx([level[0] ** 2 / level[1]] * 2, rel=1e-12)
    gradient, log_probs = classifier.gradient_and_log_probs(x, level[0], Target(1, 0.25), level[1])
    assert torch.allclose(found.gradient, gradient, rtol=1e-9, atol=0)
    assert torch.allclose(found.log_probs, log_probs, rtol=1e-9, atol=0)


def copied_in_inference_mode(network):
    """What loading, moving and reloading do: every weight becomes an inference tensor."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.data.clone(), requires_grad=False)
    assert all(w.is_inference() for w in (*network.parameters(), *network.buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_survives_inference_mode_and_reloads(dtype):
    x, sigma, label = images(), torch.tensor([0.5, 3.0]), torch.tensor([1, 2])
    expected = NoisyClassifier(half_unet().to(dtype), "linear").gradient(x, sigma, label)
    with torch.inference_mode():
        network = half_unet().to(dtype)
        classifier = NoisyClassifier(network, "linear")
        for _ in range(2):
            copied_in_inference_mode(network)
            arguments = x.clone(), sigma.clone(), label.clone()
            assert torch.equal(classifier.gradient(*arguments), expected)
        # a network that torch itself made and moved there
        made = smooth()
        made.network.float().double()
        moved = made.gradient(x.double(), 1.0, 1)
    expected = smooth().gradient(x.double(), 1.0, 1)
    assert (moved - expected).abs().max() < 1e-5
    with torch.no_grad():
        assert torch.equal(smooth().gradient(x.double(), 1.0, 1), expected)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_nothing_is_left_behind(trainable, inference):
    x = images()
    with torch.inference_mode(inference):
        network = half_unet().requires_grad_(trainable)
        classifier = NoisyClassifier(network, "linear")
        gradient, log_probs = classifier.gradient_and_log_probs(x, 1.0, Target(1))
        assert not classifier.log_probs(x, 1.0).requires_grad
    assert not gradient.requires_grad and gradient.grad_fn is None
    assert not log_probs.requires_grad
    assert not x.requires_grad and x.grad is None
    assert all(p.requires_grad == trainable and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_points_the_same_way(dtype):
    x, sigma, label = images(batch=3), torch.tensor([0.1, 2.0, 60.0]), torch.tensor([0, 1, 2])
    expected = noisy_classifier().gradient(x, sigma, label).flatten(1)
    half = NoisyClassifier(half_unet().to(dtype), "linear")
    got = half.gradient(x, sigma, label).flatten(1)
    assert got.dtype == half.log_probs(x, sigma).dtype == torch.float32
    assert torch.cosine_similarity(got, expected).min() > 0.999
    assert (got.norm(dim=1) / expected.norm(dim=1) - 1).abs().max() < 0.05


class Sure(nn.Module):
    """All but certain of class 0: the gradient towards it nearly vanishes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x, t):
        mean = (x * 1e-3 * self.weight).mean(dim=(1, 2, 3))
        return torch.stack([mean + 9, -mean], dim=1)


def test_small_gradients_do_not_underflow_in_fp16():
    x = images()
    expected = NoisyClassifier(Sure(), "linear").gradient(x, 1.0, 0)
    got = NoisyClassifier(Sure().half(), "linear").gradient(x, 1.0, 0)
    assert 0 < expected.abs().max() < torch.finfo(torch.float16).tiny
    assert (got != 0).all()
    assert (got / expected - 1).abs().max() < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_half_precision_image_keeps_its_dtype(dtype):
    x = images().half()
    gradient = NoisyClassifier(half_unet().to(dtype), "linear").gradient(x, 1.0, 0)
    assert (gradient.dtype, gradient.shape) == (torch.float16, x.shape)
    assert gradient.isfinite().all()


def test_a_classifier_knows_its_classes_and_channels():
    unnamed = NoisyClassifier(half_unet(), "linear")
    unknown = NoisyClassifier(SmoothClassifier(), "linear")
    for classifier, classes, channels, name in (
        (noisy_classifier(), CLASSES, 3, "zebra"),
        (unnamed, CLASSES, 3, "2"),
        (smooth(), CLASSES, None, "zebra"),
        (unknown, None, None, "2"),
    ):
        assert (classifier.num_classes, classifier.channels) == (classes, channels)
        assert class_name(classifier, 2) == name
        assert not classifier.reads_images and not classifier.through_model
    with pytest.raises(ValueError, match="labels names 2 classes; the network has 3"):
        NoisyClassifier(half_unet(), "linear", ("cat", "dog"))


def test_another_copy_of_the_network_keeps_everything_else():
    classifier = NoisyClassifier(half_unet(), "cosine", NAMES, "rgb", lambda x: None)
    copy = classifier.with_network(half_unet(pool="spatial"))
    assert copy.schedule is classifier.schedule and copy.memory_plan is classifier.memory_plan
    assert (copy.labels, copy.space) == (NAMES, "rgb")
    assert copy.layout.pool == "spatial"
