"""torch.compile gets a classifier's network whole: one graph, and the same gradient."""

from __future__ import annotations

import functools

import pytest
import torch
from fake_graphs import FakeRecorder
from tiny_networks import half_unet, images, noisy_classifier, write_model
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from guidance import load_classifier
from guidance.core.cuda_graph import GraphCache

LABELS = torch.tensor([2, 0])


@pytest.fixture(autouse=True)
def fresh():
    """Nothing compiled before or after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


MORE = [(pool, False) for pool in ("attention", "adaptive", "spatial", "spatial_v2")]


@pytest.mark.parametrize(
    ("pool", "graphs"),
    [("attention", True), *(pytest.param(*case, marks=pytest.mark.long) for case in MORE)],
)
def test_the_network_is_one_graph(pool, graphs):
    """Of the forward and of the backward pass; Inductor, which writes kernels, comes after that."""
    seen = []

    def backend(kind, graph, inputs):
        seen.append(kind)
        return make_boxed_func(graph.forward)

    counting = [functools.partial(backend, kind) for kind in ("forward", "backward")]
    aot = aot_autograd(fw_compiler=counting[0], bw_compiler=counting[1])
    plain, compiled = noisy_classifier(pool=pool), noisy_classifier(pool=pool)
    compiled.network.compile(dynamic=False, fullgraph=True, backend=aot)
    cache = GraphCache(100, recorder=FakeRecorder()) if graphs else GraphCache()
    for index in range(3):
        x, labels = images(2, seed=index), (LABELS + index) % 3
        expected = plain.gradient(x, 1.5, labels)
        got = compiled.gradient(x, 1.5, labels, graphs=cache)
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert seen == ["forward", "backward"]


@pytest.mark.long
def test_a_compiled_classifier(tmp_path):
    """By Inductor, which needs a C++ compiler on a CPU."""
    path = write_model(tmp_path / "classifier.safetensors", half_unet())
    try:
        gradient = load_classifier(path, compile=True).gradient(images(2), 1.5, LABELS)
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"Inductor cannot compile here: {str(error).splitlines()[0]}")
    expected = load_classifier(path).gradient(images(2), 1.5, LABELS)
    assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max()
