"""Guidance by a classifier of clean images: the exact gradient, the cheap one, and their runs."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import (
    CLASSES,
    NAMES,
    SIZE,
    diffusion_model,
    guidance_term,
    images,
    noisy_classifier,
)
from torch import nn

from guidance import ImageClassifier
from guidance.classifiers.base import SamplingPoint, Target, class_name
from guidance.classifiers.preprocessing import Preprocessing
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain
from guidance.sampling.strength import Strength
from guidance.schedules.schedule import GuidanceSchedule

LABELS = torch.tensor([0, 2])


class Smooth(nn.Module):
    """logits = V tanh(W x), float64."""

    def __init__(self, pixels=3 * SIZE * SIZE, classes=CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(7)

        def weights(*shape):
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(values / shape[-1] ** 0.5, requires_grad=False)

        self.hidden, self.last = weights(16, pixels), weights(classes, 16)

    def forward(self, x):
        return 3 * (x.flatten(1) @ self.hidden.T).tanh() @ self.last.T


MIX = torch.randn(192, 192, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def denoiser(x):
    """A smooth D(x) whose pixels depend on each other, float64."""
    return (x.flatten(1) @ (MIX / 192**0.5)).tanh().view_as(x)


def classifier(gradient="cheap", network=None, **options):
    return ImageClassifier(
        network or Smooth(), Preprocessing(), CLASSES, NAMES, gradient=gradient, **options
    )


POINTS = images(dtype=torch.float64)
LEVELS = [(0.1, 1.0), (30.0, 1.0), (0.3, 0.7), (0.9, 0.1)]
BEYOND = [(1.0, 0.0), (20000.0, 1.0)]


@pytest.mark.parametrize(("sigma", "alpha"), LEVELS)
def test_exact_is_autograd_through_the_whole_chain(sigma, alpha):
    x = POINTS.clone().requires_grad_()
    log_probs = Smooth()(denoiser(x)).log_softmax(dim=1)
    (whole,) = torch.autograd.grad(log_probs[[0, 1], LABELS].sum(), x)
    x_in = POINTS.clone().requires_grad_()
    term = guidance_term(classifier("exact"), x_in, denoiser(x_in), sigma, LABELS, alpha, 2.0)
    expected = 2 * sigma**2 / alpha * whole
    assert expected.abs().max() > 1e-4
    assert (term - expected).abs().max() < 1e-10 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("std", [1.0, 0.5])
@pytest.mark.parametrize(("sigma", "alpha"), [*LEVELS, *BEYOND])
def test_cheap_is_the_variance_times_the_gradient(sigma, alpha, std):
    """r^2 g: at most s^2 g however much noise there is, and sigma^2 / alpha^2 g for little."""
    denoised = denoiser(POINTS)
    guide = classifier(data_std=std)
    term = guidance_term(guide, POINTS, denoised, sigma, LABELS, alpha)
    g, *_ = guide.image_gradient(denoised, Target(LABELS))
    variance = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    assert (term - variance * g).abs().max() < 1e-12


def test_beyond_its_range_exact_has_the_weight_of_its_end():
    for sigma, alpha in BEYOND:
        x = POINTS.clone().requires_grad_()
        point = SamplingPoint.at(x, denoiser(x), sigma, alpha)
        found = classifier("exact").output(point, Target(LABELS))
        assert (found.sigma / found.alpha).tolist() == pytest.approx([157.4] * 2)
        assert torch.equal(found.weight, found.sigma**2 / found.alpha)


@pytest.mark.parametrize("kind", ["cheap", "exact"])
def test_the_pixels_that_it_read_are_passed_on(kind):
    """The decoder runs once, and a trace shows what it gave, without a graph."""
    calls = []

    def decode(x0):
        calls.append(1)
        return 0.5 * x0.flip(1)

    x, guide = POINTS.clone().requires_grad_(), classifier(kind).with_network(Smooth(), decode)
    point = SamplingPoint.at(x, denoiser(x), 2.0)
    seen = guide.output(point, Target(LABELS)).seen
    assert len(calls) == 1 and not seen.requires_grad
    assert torch.equal(seen, 0.5 * denoiser(POINTS).flip(1))
    plain = classifier(kind).output(point, Target(LABELS)).seen
    assert torch.equal(plain, denoiser(POINTS))


@pytest.mark.parametrize("kind", ["cheap", "exact"])
def test_an_output_for_another_level(kind):
    """cheap: the same gradient, weighted for it; exact: the same term."""
    x, guide = POINTS.clone().requires_grad_(), classifier(kind, data_std=0.5)
    first = guide.output(SamplingPoint.at(x, denoiser(x), 2.0), Target(LABELS, 0.1))
    levels = torch.tensor([0.5] * 2).double(), torch.tensor([0.8] * 2).double()
    second = guide.rescale(first, *levels)
    if kind == "exact":
        assert second is first
        return
    assert second.gradient is first.gradient and second.log_probs is first.log_probs
    assert second.sigma is levels[0] and second.alpha is levels[1]
    assert second.weight.tolist() == pytest.approx([0.0625 / (0.64 * 0.25 + 0.25)] * 2)


@pytest.mark.parametrize(("sigma", "alpha"), LEVELS)
def test_gaussian_data_and_a_linear_likelihood(sigma, alpha):
    """x0 ~ N(m, S), log p(y | x0) = c . x0: E[x0 | x, y] = D(x) + Cov(x0 | x) c, in closed form.

    Exact guidance is exact there; cheap is where S is s^2 I.
    """
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    for covariance, kinds in ((root @ root.T, ["exact"]), (0.49 * eye, ["exact", "cheap"])):
        mean, c = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * eye)
        x = torch.randn(4, 3, 1, 1, generator=generator, dtype=torch.float64).requires_grad_()
        denoised = (mean + (x.flatten(1) - alpha * mean) @ gain.T).view_as(x)
        posterior = covariance - alpha * gain @ covariance
        network = TwoSided(c)
        for kind in kinds:
            guide = ImageClassifier(network, Preprocessing(), 2, gradient=kind, data_std=0.7)
            term = guidance_term(guide, x, denoised, sigma, 0, alpha, 1.5).flatten(1)
            expected = 1.5 * network.share(denoised)[:, None] * (posterior @ c)
            assert (term - expected).abs().max() < 1e-9


class TwoSided(nn.Module):
    """Two classes, log p(0 | x0) = log sigmoid(c . x0): its gradient is (1 - p) c."""

    def __init__(self, c):
        super().__init__()
        self.c = nn.Parameter(c, requires_grad=False)

    def forward(self, x):
        return torch.stack([x.flatten(1) @ self.c, x.new_zeros(len(x))], dim=1)

    def share(self, x):
        return 1 - torch.sigmoid(x.flatten(1) @ self.c).detach()


def test_decoding_is_part_of_the_gradient():
    mix = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def decode(latents):
        return torch.einsum("oc,bchw->bohw", mix, latents).tanh()

    latents = torch.randn(2, 5, SIZE, SIZE, dtype=torch.float64)
    guide = classifier("exact", data_std=0.5).with_network(Smooth(), decode)
    assert guide.through_model and guide.data_std == 0.5 and guide.labels == NAMES
    g, log_probs, *_ = guide.image_gradient(latents, Target(LABELS))
    x0 = latents.clone().requires_grad_()
    expected = Smooth()(decode(x0)).log_softmax(dim=1)
    (wanted,) = torch.autograd.grad(expected[[0, 1], LABELS].sum(), x0)
    assert torch.allclose(g, wanted, atol=1e-12) and torch.allclose(log_probs, expected)
    # finished images are read as they are
    pixels = POINTS
    assert torch.allclose(guide.image_log_probs(pixels), Smooth()(pixels).log_softmax(dim=1))


@pytest.mark.parametrize(
    ("activation", "classes", "of_logits"),
    [
        ("sigmoid", CLASSES, lambda logits: torch.sigmoid(logits).log()),
        ("sigmoid", 1, lambda logits: torch.sigmoid(logits).log()),
        ("score", 1, lambda logits: logits),
    ],
)
def test_what_is_no_softmax(activation, classes, of_logits):
    """A sigmoid of each class, or the output itself: values, and the gradient of the label's."""
    labels, network = torch.tensor([0, classes - 1]), Smooth(classes=classes)
    guide = ImageClassifier(network, Preprocessing(), classes, activation=activation)
    for same in (guide, guide.with_network(network), guide.with_gradient("exact")):
        assert same.is_score == (activation == "score")
        g, values, *_ = same.image_gradient(POINTS, Target(labels))
        x0 = POINTS.clone().requires_grad_()
        expected = of_logits(network(x0))
        (wanted,) = torch.autograd.grad(expected[[0, 1], labels].sum(), x0)
        assert wanted.abs().max() > 1e-3
        assert torch.allclose(g, wanted, atol=1e-12) and torch.allclose(values, expected)
        assert torch.allclose(same.image_log_probs(POINTS), expected)


def test_half_precision_keeps_small_gradients():
    """A label that is very unlikely, and one that is nearly certain: in fp16 both would be lost."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES))
    nn.init.normal_(network[1].weight, std=0.3, generator=torch.Generator().manual_seed(0))
    network.requires_grad_(False)
    x0 = images()
    expected, log_probs, *_ = classifier(network=network).image_gradient(x0, Target(LABELS))
    got, *_ = classifier(network=network.half()).image_gradient(x0, Target(LABELS))
    assert log_probs.min() < -8
    cosine = torch.cosine_similarity(got.flatten(1), expected.flatten(1))
    assert bool((cosine > 0.999).all())
    assert (got.norm() / expected.norm() - 1).abs() < 0.01


def test_inside_inference_mode_with_weights_made_there():
    with torch.inference_mode():
        got = guidance_term(classifier(network=Smooth()), POINTS, POINTS, 1.0, LABELS)
    assert torch.equal(got, guidance_term(classifier(), POINTS, POINTS, 1.0, LABELS))


def test_what_cannot_be():
    for options, said in (
        ({"gradient": "half"}, "gradient is 'half'; .* cheap, exact"),
        ({"data_std": 0.0}, "data_std is 0.0; .* above 0"),
        ({"labels": ["a"]}, "labels names 1 classes; the network has 3"),
        ({"activation": "tanh"}, "activation is 'tanh'; .* softmax, sigmoid, score"),
        ({"activation": "score"}, "score is one output; this network has 3"),
    ):
        with pytest.raises(ValueError, match=said):
            ImageClassifier(Smooth(), Preprocessing(), CLASSES, **options)
    for label, said in ((3, "from 0 to 2"), (torch.tensor([0, 1, 2]), "one, or 2 of them")):
        with pytest.raises(ValueError, match=said):
            classifier().image_gradient(POINTS, Target(label))
    for x in (POINTS, POINTS.clone().requires_grad_()):
        with pytest.raises(ValueError, match="not connected with x.*or use cheap"):
            guidance_term(classifier("exact"), x, POINTS, 1.0, 0)
    assert class_name(classifier(), 1) == NAMES[1]
    assert class_name(ImageClassifier(Smooth(), Preprocessing(), CLASSES), 1) == "1"


@pytest.fixture(scope="module")
def model():
    return diffusion_model()


def run(model, guides):
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps("4"))
    return sample(model, images(), steps, guides=guides, cfg=0.0, labels=LABELS)


def in_fp32(gradient):
    return classifier(gradient, Smooth().float())


def guide_of(classifier, scale):
    return Guide(classifier, LABELS, Strength(scale=scale))


def test_one_step_of_the_sampler_is_the_whole_chain(model):
    """With CFG and clipping, which are parts of the prediction."""
    step = chain(model.schedule.alpha_bar.tolist(), [400])[0]
    x = images()
    options = {"labels": LABELS, "cfg": 2.0, "noise": torch.zeros_like}
    plain = sample(model, x, [step], **options)
    guided = sample(model, x, [step], guides=[guide_of(in_fp32("exact"), 3.0)], **options)
    x_in = x.clone().requires_grad_()
    t, null = torch.full((2,), 400.0), model.null_labels(2)
    cond, uncond = model(x_in, t, LABELS)[0], model(x_in, t, null)[0]
    ab = step.alpha_bar
    eps = uncond + 2 * (cond - uncond)
    denoised = ((x_in - (1 - ab) ** 0.5 * eps) / ab**0.5).clamp(-1, 1)
    log_probs = Smooth().float()(denoised).log_softmax(dim=1)
    (gradient,) = torch.autograd.grad(log_probs[[0, 1], LABELS].sum(), x_in)
    expected = 3 * (1 - ab) / ab**0.5 * gradient
    assert expected.abs().max() > 1e-3
    assert (guided - plain - expected).abs().max() < 1e-5


def test_guides_add_up(model):
    """Two exact ones share the model's one evaluation; a noisy one joins them."""
    calls = []
    hook = model.network.register_forward_hook(lambda *_: calls.append(1))
    exact, noisy = in_fp32("exact"), noisy_classifier()
    one = run(model, [guide_of(exact, 6.0), guide_of(noisy, 5.0)])
    alone = len(calls)
    parts = [guide_of(exact, 2.0), guide_of(noisy, 5.0), guide_of(exact, 4.0)]
    two = run(model, parts)
    hook.remove()
    assert len(calls) == 2 * alone
    assert (one - two).abs().max() < 1e-5


def test_where_the_schedule_is_zero_nothing_goes_through_the_model(model):
    network = Smooth().float()
    seen, graphs = [], []
    hooks = [
        network.register_forward_hook(lambda *_: seen.append(1)),
        model.network.register_forward_hook(lambda *args: graphs.append(args[2].requires_grad)),
    ]
    half = GuidanceSchedule.interval("step", 0.0, 0.5, 5.0, 0.0)
    run(model, [Guide(classifier("exact", network), LABELS, Strength(scale=1.0), half)])
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2
    assert graphs == [True, True, False, False]
