"""The gradient cache: when a classifier is evaluated, and what its last output is used for."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import CLASSES, SIZE, noisy_classifier
from torch import nn

from guidance import ImageClassifier
from guidance.classifiers.base import ClassifierOutput, SamplingPoint, Target
from guidance.classifiers.gradient_cache import GradientCache
from guidance.classifiers.preprocessing import Preprocessing
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.strength import Strength


class Recorder:
    """A classifier that keeps its calls; its gradient is the number of the call."""

    through_model = True

    def __init__(self):
        self.calls, self.rescaled = [], []

    def output(self, point, target):
        self.calls.append((point, target))
        gradient = torch.full_like(point.x, len(self.calls))
        log_probs = torch.zeros(len(point.x), 2)
        levels = point.sigma, point.alpha
        return ClassifierOutput(gradient, point.sigma, log_probs, *levels, seen=point.denoised)

    def rescale(self, output, sigma, alpha):
        self.rescaled.append((output, sigma, alpha))
        return "rescaled"


def point_of(*shape, sigma=2.0, alpha=1.0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return SamplingPoint.at(x, x, sigma, alpha)


TARGET = Target(torch.tensor([1]), 0.25)


@pytest.mark.parametrize(
    ("interval", "computed"), [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (3, [0, 3, 6])]
)
def test_the_gradient_is_computed_every_interval(interval, computed):
    recorder, cache, points = Recorder(), GradientCache(interval), []
    found, last = [], None
    for index in range(7):
        points.append(point_of(1, 3, 2, 2, sigma=float(index)))
        due = cache.is_due(points[-1].x)
        output = cache.output(recorder, points[-1], TARGET)
        if due:
            found.append(index)
            last = output
            assert float(output.gradient.flatten()[0]) == len(found)
            assert recorder.calls[-1] == (points[-1], TARGET)
        else:
            assert output == "rescaled"
            seen, sigma, alpha = recorder.rescaled[-1]
            assert seen.gradient is last.gradient and seen.log_probs is last.log_probs
            assert last.seen is not None and seen.seen is None, "an output is seen once"
            assert sigma is points[-1].sigma and alpha is points[-1].alpha
    assert found == computed
    assert len(recorder.calls) + len(recorder.rescaled) == 7


@pytest.mark.parametrize("other", [(1, 3, 4, 4), (2, 3, 2, 2)])
def test_images_of_another_shape_start_a_new_interval(other):
    recorder, cache = Recorder(), GradientCache(3)
    shapes = [(1, 3, 2, 2)] * 2 + [other] * 4
    outputs = [cache.output(recorder, point_of(*shape), TARGET) for shape in shapes]
    assert [one == "rescaled" for one in outputs] == [False, True, False, True, True, False]


def test_the_model_needs_a_graph_only_when_the_gradient_is_due():
    recorder = Recorder()
    guide = Guide(recorder, TARGET.labels, Strength(scale=1.0), cache=GradientCache(2))
    seen = []
    for _ in range(4):
        point = point_of(1, 3, 2, 2)
        seen.append(guide.needs_graph(point.x))
        guide.cache.output(recorder, point, TARGET)
    assert seen == [True, False, True, False]
    guide.cache.output(recorder, point, TARGET)
    assert not guide.needs_graph(point.x) and guide.needs_graph(torch.zeros(2, 3, 2, 2))
    recorder.through_model = False
    assert not guide.needs_graph(torch.zeros(2, 3, 2, 2))


def test_an_exact_gradient_of_another_batch_size_is_computed_anew():
    """As where a host splits a batch: the last output does not fit, and the graph is needed."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES))
    classifier = ImageClassifier(
        network.requires_grad_(False), Preprocessing(), CLASSES, gradient="exact"
    )
    guide = Guide(classifier, torch.tensor([1]), Strength(scale=1.0), cache=GradientCache(9))
    fresh = Guide(classifier, torch.tensor([1]), Strength(scale=1.0))

    def term(guide, batch):
        x = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
        if guide.needs_graph(x):
            x.requires_grad_(True)
        return guide.term(SamplingPoint.at(x, x.tanh(), 1.5)), x.requires_grad

    for batch, graph in ((2, True), (2, False), (3, True), (3, False), (1, True)):
        found, tracked = term(guide, batch)
        assert tracked == graph and found.abs().max() > 0
        torch.testing.assert_close(found, term(fresh, batch)[0])
        fresh.cache.interval, fresh.cache._output = 1, None


def test_a_noisy_classifiers_gradient_stays_in_its_own_coordinates():
    """At another level it is the same gradient in x_vp, by the chain rule."""
    classifier, cache, target = noisy_classifier(), GradientCache(2), Target(torch.tensor([0, 1]))
    shape = (2, 3, SIZE, SIZE)
    first = cache.output(classifier, point_of(*shape), target)
    second = cache.output(classifier, point_of(*shape, sigma=0.5, alpha=0.25), target)
    sizes = [(1 + 2.0**2) ** 0.5, (0.25**2 + 0.5**2) ** 0.5]
    torch.testing.assert_close(second.gradient * sizes[1], first.gradient * sizes[0])
    assert second.weight.tolist() == [0.5**2 / 0.25] * 2
    assert second.sigma.tolist() == [0.5] * 2 and second.alpha.tolist() == [0.25] * 2
    assert second.log_probs is first.log_probs
    third = cache.output(classifier, point_of(*shape, sigma=0.5), target)
    expected = classifier.output(point_of(*shape, sigma=0.5), target)
    torch.testing.assert_close(third.gradient, expected.gradient)


def test_beyond_the_classifiers_range_the_levels_are_its_end():
    classifier, cache, target = noisy_classifier(), GradientCache(2), Target(1)
    cache.output(classifier, point_of(2, 3, SIZE, SIZE), target)
    seen = cache.output(classifier, point_of(2, 3, SIZE, SIZE, sigma=1.0, alpha=0.0), target)
    ratio = classifier.schedule.max_ratio
    assert bool(seen.gradient.isfinite().all())
    assert (seen.sigma / seen.alpha).tolist() == pytest.approx([ratio] * 2)
    assert (seen.sigma**2 + seen.alpha**2).tolist() == pytest.approx([1.0] * 2)


@pytest.mark.parametrize("interval", [0, -3])
def test_an_interval_below_one_is_refused(interval):
    with pytest.raises(ValueError, match=f"gradient_interval is {interval}; .* at least 1"):
        GradientCache(interval)
