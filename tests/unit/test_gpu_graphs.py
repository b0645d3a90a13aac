"""Gradients as CUDA graphs on a real GPU: the same gradients, no waits, and memory given back.

To the bit they are the same where nothing adds in an order of its own, as attention does for its
gradient; so the largest difference is bounded here.
"""

from __future__ import annotations

import gc

import pytest
import torch
from tiny_networks import CLASSES, diffusion_model, half_unet, images, noisy_classifier
from torch import nn

from guidance import DiffusionModel, ImageClassifier
from guidance.classifiers.base import SamplingPoint, Target
from guidance.classifiers.looks import Looks
from guidance.classifiers.preprocessing import Preprocessing
from guidance.core import cuda_graph
from guidance.core.cuda_graph import EAGER, GraphCache
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain
from guidance.sampling.strength import Strength

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None,
    reason="there is no NVIDIA GPU",
)
LABELS = torch.tensor([2, 0])
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Clean(nn.Module):
    """Reads clean images with a classifier of noisy ones."""

    def __init__(self):
        super().__init__()
        self.network = half_unet()

    def forward(self, x):
        return self.network(x, torch.zeros(len(x), device=x.device))


def noisy(dtype=torch.float32, **changes):
    classifier = noisy_classifier(**changes)
    return classifier.with_network(classifier.network.to("cuda", dtype))


def clean(dtype=torch.float32):
    looks = Looks(count=3, flip=True)
    return ImageClassifier(Clean().to("cuda", dtype), Preprocessing(), CLASSES, looks=looks)


def point(index, graphs):
    x = images(2, seed=index).to("cuda")
    at = SamplingPoint.at(x, x.clamp(-1, 1), 1.5 + index)
    chance = torch.Generator().manual_seed(index)
    return SamplingPoint(x, at.denoised, at.sigma, at.alpha, chance, graphs)


def outputs(classifier, graphs, number=5):
    target = Target(LABELS.to("cuda"))
    found = [classifier.output(point(index, graphs), target) for index in range(number)]
    return [one for output in found for one in (output.gradient, output.log_probs)]


def are_close(found, expected, dtype=torch.float32):
    pairs = list(zip(found, expected, strict=True))
    assert all(other.abs().max() > 0 for _, other in pairs)
    return all((a - b).abs().max() <= ROUNDING[dtype] * b.abs().max() for a, b in pairs)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("kind", [noisy, clean])
def test_a_graph_gives_the_eager_gradient(kind, dtype):
    classifier, graphs = kind(dtype), GraphCache(100)
    expected = outputs(classifier, EAGER)
    found = outputs(classifier, graphs)
    assert graphs.is_on and len(graphs._graphs) == 1, "it was not recorded"
    graphs.close()
    assert are_close(found, expected, dtype)


def test_weights_that_moved():
    classifier, graphs = noisy(), GraphCache(100)
    outputs(classifier, graphs)
    classifier.network.to("cpu")
    classifier.network.to("cuda")
    layer = classifier.network.out[2].qkv_proj
    layer.weight.data = layer.weight.detach() * 1.5
    assert are_close(outputs(classifier, graphs), outputs(classifier, EAGER))
    graphs.close()


def test_a_started_graph_does_not_make_the_host_wait():
    classifier, graphs = noisy(), GraphCache(100)
    guide = Guide(classifier, LABELS.to("cuda"), Strength(scale=2.0), graphs=graphs)
    target, points = Target(guide.labels), [point(index, graphs) for index in range(6)]
    for one in points[:3]:
        classifier.output(one, target)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for one in points[3:]:
            guide.start(one.x, one.sigma, one.alpha)
            classifier.output(one, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graphs.close()


def test_memory_is_given_back():
    def used():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    classifier, during = noisy(model_channels=64), []
    for _ in range(4):
        before, graphs = used(), GraphCache(100)
        outputs(classifier, graphs)
        during.append(used() - before)
        graphs.close()
        del graphs
        # the first leaves what libraries keep for the stream
        after = used() - before
    assert during[-1] > 0 and after == 0


def drawn(kinds):
    unet = diffusion_model().network.to("cuda")
    model = DiffusionModel(unet, "linear")
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps("ddim20"))
    labels = LABELS.to("cuda")
    guides = [Guide(kind(), labels, Strength(scale=3.0)) for kind in kinds]
    return sample(model, images(2).to("cuda"), steps, labels=labels, guides=guides)


@pytest.mark.parametrize("kinds", [[noisy], [noisy, noisy], [noisy, clean]])
def test_a_run_draws_the_same_images(kinds, monkeypatch):
    found = drawn(kinds)
    monkeypatch.setenv(cuda_graph.OFF, "0")
    assert (found - drawn(kinds)).abs().max() < 1e-2
