#!/usr/bin/env python3
"""The classifier's gradient against the original's: python benchmarks/gradient.py

The released 64x64 layout, four images, the same weights and inputs, runs taken in turn. The last
rows are what no code of ours can do without: the same convolutions alone, forward and back, and
those with the attentions, by the kernels that torch has for them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from harness import Row, in_turn, print_rows, quick_bf16, use_library
from reference import ours_of, their_classifier, their_gradient

use_library()

from guidance import NoisyClassifier  # noqa: E402

BATCH, SIZE, TIMESTEP = 4, 64, 500
AGAINST = "original, fp32"


class Pair:
    """Both classifiers, and a batch."""

    def __init__(self) -> None:
        self.theirs = their_classifier(SIZE)
        self.ours = ours_of(self.theirs, "64x64_classifier.pt")
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
        self.y = torch.arange(BATCH)
        self.t = torch.full((BATCH,), float(TIMESTEP))

    def original(self) -> torch.Tensor:
        """The original's gradient."""
        return their_gradient(self.theirs, self.x, self.t, self.y)

    def gradient(self, dtype: torch.dtype = torch.float32):
        """A function that computes ours, of weights in that precision."""
        network = copy.deepcopy(self.ours).to(dtype)
        classifier = NoisyClassifier(network, "cosine")
        ab = float(classifier.schedule.alpha_bar[TIMESTEP])
        return lambda: classifier.gradient(self.x, (1 - ab) ** 0.5, self.y, ab**0.5)


Call = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...], torch.Tensor]


class Recorded:
    """The calls of a network's convolutions and attentions, with what they were given."""

    def __init__(self, network: torch.nn.Module, *inputs: torch.Tensor) -> None:
        self.convolutions: list[Call] = []
        self.attentions: list[Call] = []
        kinds = (torch.nn.Conv1d, torch.nn.Conv2d)
        layers = [layer for layer in network.modules() if isinstance(layer, kinds)]
        hooks = [layer.register_forward_hook(self._layer) for layer in layers]
        attend = F.scaled_dot_product_attention

        def attended(*given: torch.Tensor) -> torch.Tensor:
            output = attend(*given)
            self.attentions.append((attend, _copies(given), torch.ones_like(output)))
            return output

        with torch.no_grad(), mock.patch.object(F, "scaled_dot_product_attention", attended):
            network(*inputs)
        for hook in hooks:
            hook.remove()

    def _layer(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.convolutions.append((layer, _copies(inputs), torch.ones_like(output)))


def _copies(given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """In the same memory format; the network may write into what it gave."""
    return tuple(one.detach().clone() for one in given)


def alone(calls: list[Call]) -> Callable[[], None]:
    """A function that computes these calls, forward and back, and nothing else."""

    def run() -> None:
        for compute, inputs, gradient in calls:
            tracked = [one.requires_grad_(True) for one in inputs]
            torch.autograd.grad(compute(*tracked), tracked, gradient)

    return run


def rows() -> Iterator[Row]:
    """Ours in fp32 and bf16, and the parts alone."""
    pair = Pair()
    half = pair.gradient(torch.bfloat16)
    recorded = Recorded(pair.ours, pair.x, pair.t)
    runs = {"theirs": pair.original, "ours": pair.gradient()}
    runs["convolutions"] = alone(recorded.convolutions)
    runs["both"] = alone(recorded.convolutions + recorded.attentions)
    if quick_bf16():
        runs["bf16"] = half
    expected, got = pair.original(), runs["ours"]()
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max(), "other gradients"
    taken = in_turn(runs, again=True)

    def row(name: str, what: str, bar: float | None = None) -> Row:
        return taken[name].row(what, AGAINST, taken["theirs"], bar)

    cosine = F.cosine_similarity(half().flatten(1), expected.flatten(1)).min().item()
    yield row("ours", "gradient, fp32", 0.50)
    if "bf16" in runs:
        yield row("bf16", "gradient, bf16", 0.25)
    yield Row("1 - cosine of the bf16 gradient", "to the original's in fp32", 1 - cosine, 0.001)
    yield row("convolutions", "its convolutions alone, fp32")
    yield row("both", "its convolutions and attentions alone, fp32")


if __name__ == "__main__":
    print_rows(rows())
