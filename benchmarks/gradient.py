#!/usr/bin/env python3
"""The classifier's gradient against the original's: python benchmarks/gradient.py

The released 64x64 layout, four images, the same weights and inputs, runs taken in turn. The last
row is what no code of ours can do without: the same convolutions alone, forward and back.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from harness import Row, in_turn, print_rows, use_library
from reference import ours_of, their_classifier, their_gradient

use_library()

from guidance import NoisyClassifier  # noqa: E402
from guidance.compiling import compile_network  # noqa: E402

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

    def gradient(self, dtype: torch.dtype = torch.float32, compiled: bool = False):
        """A function that computes ours, of weights in that precision."""
        network = copy.deepcopy(self.ours).to(dtype)
        if compiled:
            compile_network(network)
        classifier = NoisyClassifier(network, "cosine")
        ab = float(classifier.schedule.alpha_bar[TIMESTEP])
        return lambda: classifier.gradient(self.x, (1 - ab) ** 0.5, self.y, ab**0.5)


def convolutions(network: torch.nn.Module, x: torch.Tensor, t: torch.Tensor):
    """A function that computes the network's convolutions alone, forward and back."""
    calls = []

    def seen(module, inputs, output) -> None:
        calls.append((module, inputs[0].detach(), torch.empty_like(output)))

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d)
    hooks = [m.register_forward_hook(seen) for m in network.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        network(x, t)
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for module, given, gradient in calls:
            given = given.requires_grad_(True)
            torch.autograd.grad(module(given), given, gradient)

    return run


def rows(compiled: bool = False) -> Iterator[Row]:
    """Eager ones, or the compiled one alone, which takes minutes to compile."""
    pair = Pair()
    half = pair.gradient(torch.bfloat16)
    runs = {"theirs": pair.original, "ours": pair.gradient(compiled=compiled)}
    if not compiled:
        runs |= {"bf16": half, "floor": convolutions(pair.ours, pair.x, pair.t)}
    expected, got = pair.original(), runs["ours"]()
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max(), "other gradients"
    taken = in_turn(runs)

    def row(name: str, what: str, bar: float | None = None) -> Row:
        return taken[name].row(what, AGAINST, taken["theirs"], bar)

    if compiled:
        yield row("ours", "gradient, compiled", 0.45)
        return
    cosine = F.cosine_similarity(half().flatten(1), expected.flatten(1)).min().item()
    yield row("ours", "gradient, fp32", 0.50)
    yield row("bf16", "gradient, bf16", 0.25)
    yield Row("1 - cosine of the bf16 gradient", "to the original's in fp32", 1 - cosine, 0.001)
    yield row("floor", "its convolutions alone, fp32")


if __name__ == "__main__":
    print_rows(rows(compiled="--compile" in sys.argv))
