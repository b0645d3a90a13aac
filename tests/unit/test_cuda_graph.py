"""Gradients as CUDA graphs: the same numbers, current weights, and eager where there is any doubt.

The graphs are those of fake_graphs.py, which follow the rules of real ones on any device.
"""

from __future__ import annotations

import logging

import pytest
import torch
from fake_graphs import FakeRecorder
from tiny_networks import CLASSES, SIZE, diffusion_model, half_unet, images, noisy_classifier
from torch import nn

from guidance import GuidanceSchedule, ImageClassifier
from guidance.classifiers.base import SamplingPoint, Target
from guidance.classifiers.gradient_cache import GradientCache
from guidance.classifiers.gradient_memory import GradientMemoryPlan
from guidance.classifiers.looks import Looks
from guidance.classifiers.preprocessing import Preprocessing
from guidance.core import cuda_graph
from guidance.core.cuda_graph import EAGER, FEWEST, GraphCache
from guidance.core.kept_bytes import KeptBytes
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain
from guidance.sampling.strength import Strength

LABELS = torch.tensor([2, 0])
MANY = 100
ONE_GRAPH = ["record", "start"]


class Clean(nn.Module):
    """Reads clean images with a classifier of noisy ones."""

    def __init__(self):
        super().__init__()
        self.network = half_unet()

    def forward(self, x):
        return self.network(x, torch.zeros(len(x)))


def clean(**options):
    return ImageClassifier(Clean(), Preprocessing(), CLASSES, **options)


def graphs(evaluations=MANY, **options):
    return GraphCache(evaluations, recorder=FakeRecorder(**options))


def outputs(classifier, cache, number=4, smoothing=0.0):
    """Gradients and log probs at points of a run, each with labels of its own."""
    found = []
    generator = torch.Generator().manual_seed(4)
    for index in range(number):
        x = images(2, seed=index)
        point = SamplingPoint.at(x, x.clamp(-1, 1), 1.5 + index)
        point = SamplingPoint(
            point.x, point.denoised, point.sigma, point.alpha, generator=generator, graphs=cache
        )
        output = classifier.output(point, Target((LABELS + index) % CLASSES, smoothing))
        found.append((output.gradient, output.log_probs))
    return found


def same(found, expected):
    pairs = [pair for one in zip(found, expected, strict=True) for pair in zip(*one, strict=True)]
    assert all(expected.abs().max() > 0 for _, expected in pairs)
    return all(torch.equal(one, other) for one, other in pairs)


KINDS = {
    "noisy": noisy_classifier,
    "attention pool": lambda: noisy_classifier(pool="attention"),
    "clean": clean,
    "looks": lambda: clean(looks=Looks(count=3, flip=True)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_graph_gives_the_eager_gradient_to_the_bit(kind, smoothing):
    """Computed once, recorded at the second point, then started; the labels are inputs."""
    classifier, cache = KINDS[kind](), graphs()
    expected = outputs(classifier, EAGER, smoothing=smoothing)
    assert same(outputs(classifier, cache, smoothing=smoothing), expected)
    assert cache.recorder.events == ["record", "start", "start", "start"]


def test_inside_of_inference_mode():
    classifier, cache = noisy_classifier(), graphs()
    expected = outputs(classifier, EAGER)
    with torch.inference_mode():
        found = outputs(classifier, cache)
    assert same(found, expected)


@pytest.mark.parametrize("change", ["moved", "replaced", "written"])
def test_the_graph_has_the_weights_of_now(change):
    """One that was moved or replaced is recorded anew; one that was written into is read anew."""
    classifier, cache = noisy_classifier(), graphs()
    outputs(classifier, cache)
    layer = classifier.network.out[2].qkv_proj
    other = layer.weight.detach() * 1.5
    if change == "moved":
        layer.weight.data = other
    elif change == "replaced":
        layer.weight = nn.Parameter(other, requires_grad=False)
    else:
        layer.weight.data.copy_(other)
    assert same(outputs(classifier, cache), outputs(classifier, EAGER))
    assert cache.recorder.events.count("record") == (1 if change == "written" else 2)


def test_what_differs_has_a_graph_of_its_own():
    """Shapes, precisions, the target's smoothing, and networks that are alike otherwise."""
    first, second = noisy_classifier(), noisy_classifier()
    for weight in second.network.parameters():
        weight.data.mul_(1.1)
    cache, x, double = graphs(), images(2), images(2, torch.float64)
    calls = [
        lambda graphs: first.gradient(x, 1.5, LABELS, graphs=graphs),
        lambda graphs: second.gradient(x, 1.5, LABELS, graphs=graphs),
        lambda graphs: first.gradient(x[:1], 1.5, LABELS[:1], graphs=graphs),
        lambda graphs: first.gradient(double, 1.5, LABELS, graphs=graphs),
        lambda graphs: first.gradient_and_log_probs(x, 1.5, Target(LABELS, 0.2), graphs=graphs)[0],
    ]
    expected = [call(EAGER) for call in calls]
    for _ in range(3):
        found = [call(cache) for call in calls]
        assert all(map(torch.equal, found, expected))
        assert [one.dtype for one in found] == [one.dtype for one in expected]
    assert cache.recorder.events.count("record") == len(calls)


def test_results_stay_when_the_graph_goes_on():
    classifier, cache = noisy_classifier(), graphs()
    found = outputs(classifier, cache, 3)
    copies = [tuple(map(torch.clone, one)) for one in found]
    outputs(classifier, cache, 6)
    assert same(found, copies)


@pytest.mark.parametrize("moment", ["record", "start"])
@pytest.mark.parametrize("kind", ["noisy", "looks"])
def test_where_a_graph_fails_the_run_goes_on_without(kind, moment, caplog):
    """With one line in the log, and without trying again."""
    classifier, cache = KINDS[kind](), graphs(fails=[moment])
    expected = outputs(classifier, EAGER)
    with caplog.at_level(logging.WARNING):
        assert same(outputs(classifier, cache), expected)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith(("is capturing", "out of memory"))
    assert cache.recorder.events == [*ONE_GRAPH[: 1 + (moment == "start")], "close"]


def test_a_wrong_label_is_refused_with_graphs_too():
    classifier, cache = noisy_classifier(), graphs()
    outputs(classifier, cache)
    with pytest.raises(ValueError, match="label is 3, but the classes go from 0 to 2"):
        classifier.gradient(images(2), 1.5, torch.tensor([0, 3]), graphs=cache)


def test_nothing_is_recorded_where_memory_is_short():
    """Neither where the pool has no room, nor where the gradient itself is computed in parts."""
    classifier, x = noisy_classifier(), images(2).requires_grad_(True)
    with KeptBytes() as kept:
        classifier.network(x, torch.tensor([5.0, 5.0]))
    needed = cuda_graph.POOL_SHARE * kept.bytes
    expected = outputs(classifier, EAGER)
    for free, recorded in ((0.8 * needed, 0), (1.5 * needed, 1)):
        cache = graphs(free=free)
        assert same(outputs(classifier, cache), expected)
        assert cache.recorder.events.count("record") == recorded
    for plan in (GradientMemoryPlan(images=1), GradientMemoryPlan(recompute=True)):
        cache = graphs()
        outputs(classifier.with_memory_plan(plan), cache)
        assert cache.recorder.events == []


def test_a_graph_keeps_its_memory_whatever_is_free_later():
    """Its own memory is not free any more, so the plan is not asked again."""
    plans = [GradientMemoryPlan()] * 2 + [GradientMemoryPlan(images=1)] * 10
    asked = []

    def plan(x):
        asked.append(x)
        return plans[len(asked) - 1]

    classifier, cache = noisy_classifier().with_memory_plan(plan), graphs()
    outputs(classifier, cache, 5)
    assert len(asked) == 2 and cache.recorder.events.count("start") == 4


def test_short_runs_stay_eager(monkeypatch):
    """Also where gradients are computed too seldom, and where a user says so."""
    few, many = graphs(FEWEST - 1), graphs(FEWEST)
    assert not few.is_on and many.is_on
    assert many.every(1) is many and many.every(2) is EAGER
    outputs(noisy_classifier(), few)
    assert few.recorder.events == []
    monkeypatch.setenv(cuda_graph.OFF, "0")
    assert not graphs(FEWEST).is_on


def test_a_gradient_starts_beside_the_prediction():
    """The guide's term then waits for it; of another image it is computed again."""
    classifier, cache = noisy_classifier(), graphs()
    guide = Guide(classifier, LABELS, Strength(scale=2.0), graphs=cache)
    eager = Guide(classifier, LABELS, Strength(scale=2.0))
    for index in range(4):
        point = SamplingPoint.at(images(2, seed=index), images(2), 2.0 + index)
        guide.start(point.x, point.sigma, point.alpha)
        begun = list(cache.recorder.events)
        if index == 3:  # another pack's patch gives another image
            point = SamplingPoint.at(images(2, seed=9), images(2), 2.0 + index)
        assert torch.equal(guide.term(point), eager.term(point))
        if index == 2:
            assert cache.recorder.events == begun == [*ONE_GRAPH, "start"]
    assert cache.recorder.events == [*ONE_GRAPH, "start", "start", "start"]


def test_a_start_beside_the_prediction_may_fail(caplog):
    """Where the driver has no memory left for the graph: the run goes on without."""
    classifier, cache = noisy_classifier(), graphs()
    guide = Guide(classifier, LABELS, Strength(scale=2.0), graphs=cache)
    eager = Guide(classifier, LABELS, Strength(scale=2.0))
    for index in range(4):
        cache.recorder.fails = ["start"] if index == 2 else []
        point = SamplingPoint.at(images(2, seed=index), images(2), 2.0 + index)
        guide.start(point.x, point.sigma, point.alpha)
        assert torch.equal(guide.term(point), eager.term(point))
    assert cache.recorder.events == [*ONE_GRAPH, "start", "close"] and not cache.is_on
    assert [one.levelname for one in caplog.records] == ["WARNING"]


def test_a_classifier_of_predictions_does_not_start_before_them():
    cache = graphs()
    guide = Guide(clean(), LABELS, Strength(scale=1.0), graphs=cache)
    for _ in range(4):
        point = SamplingPoint.at(images(2), images(2), 2.0)
        guide.start(point.x, point.sigma, point.alpha)
        before = len(cache.recorder.events)
        guide.term(point)
    assert len(cache.recorder.events) == before + 1


@pytest.fixture
def recorders(monkeypatch):
    """The recorders of all runs from now on."""
    made = []

    def make():
        made.append(FakeRecorder())
        return made[-1]

    monkeypatch.setattr(cuda_graph, "CUDARecorder", make)
    return made


def drawn(guides, respacing="ddim10", **options):
    model = diffusion_model()
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps(respacing))
    return sample(model, images(2), steps, labels=LABELS, guides=guides, **options)


def guide(classifier, interval=1, scale=3.0, schedule=None):
    cache = GradientCache(interval)
    return Guide(classifier, LABELS, Strength(scale=scale), schedule, cache)


HALF = GuidanceSchedule.interval("step", 0.3, 1.0, 3.0, outside=0.0)
RUNS = {
    "one": lambda: [guide(noisy_classifier())],
    "two that overlap": lambda: [guide(noisy_classifier()), guide(noisy_classifier("cosine"))],
    "noisy and clean": lambda: [guide(noisy_classifier()), guide(clean())],
    "schedule": lambda: [guide(noisy_classifier(), schedule=HALF)],
    "seldom": lambda: [guide(noisy_classifier(), interval=2)],
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_draws_the_same_images(kind, recorders, monkeypatch):
    found = drawn(RUNS[kind]())
    monkeypatch.setenv(cuda_graph.OFF, "0")
    assert torch.equal(found, drawn(RUNS[kind]()))
    events = recorders[-2].events
    assert events[-1] == "close"
    number = {"seldom": 0, "two that overlap": 2, "noisy and clean": 2}.get(kind, 1)
    assert events.count("record") == number
    assert events.count("start") == {"schedule": 6, "seldom": 0}.get(kind, 9 * number)


def test_a_run_that_fails_gives_its_memory_back(recorders):
    count = []

    def noise(x):
        count.append(x)
        if len(count) == 5:
            raise InterruptedError
        return torch.zeros_like(x)

    with pytest.raises(InterruptedError):
        drawn([guide(noisy_classifier())], noise=noise)
    assert recorders[-1].events[-1] == "close" and "start" in recorders[-1].events


def test_what_torch_keeps_is_counted_once_and_without_weights():
    x = images(1, size=SIZE).requires_grad_(True)
    weight = nn.Parameter(torch.ones(3, 1, 1))
    with KeptBytes() as kept:
        (x * weight).square().square()
    # the product, and its square; x itself for the gradient of the weight
    assert kept.bytes == 3 * x.numel() * 4
