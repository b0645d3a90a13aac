"""The classifier's gradient: time, kernels, accuracy and memory, against the original's code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import Row, use_library

from .graphs import Gradient, as_graph
from .kernels import by_kind, kernels_of, total
from .setup import Part, Setup, reference
from .timing import exact_fp32, seconds_in_turn

use_library()

from guidance import NoisyClassifier  # noqa: E402
from guidance.checkpoints.checkpoint import DTYPES  # noqa: E402
from guidance.classifiers.gradient_memory import gradient_bytes  # noqa: E402

TIMESTEP, RATIO = 500, 0.25
SMALL = {"classifier_width": 64, "classifier_depth": 1}  # of a rehearsal
# The bars of the kernels' milliseconds in fp16, by image size and batch.
CASES = {(64, 1): 2.7, (64, 8): 4.9, (256, 1): 4.0, (256, 4): 8.7}


@dataclass(frozen=True)
class Case:
    """A layout, a batch, and what is measured there."""

    setup: Setup
    size: int
    batch: int

    @property
    def name(self) -> str:
        """For the table."""
        return f"gradient {self.size}x{self.size}, batch {self.batch}"

    def theirs(self) -> Any:
        """The original's network, random weights."""
        options = self.setup.pick({}, SMALL)
        return reference().their_classifier(self.size, str(self.setup.device), **options)

    def ours(self, theirs: Any, dtype: str) -> Gradient:
        """Ours, with the same weights."""
        network = self.network(theirs).to(DTYPES[dtype])
        return self.gradient(NoisyClassifier(network, self.schedule))

    def network(self, theirs: Any) -> Any:
        """Ours, in fp32."""
        small = {"model_channels": SMALL["classifier_width"], "num_res_blocks": 1}
        changes = self.setup.pick({}, small)
        return reference().ours_of(theirs, f"{self.size}x{self.size}_classifier.pt", **changes)

    @property
    def schedule(self) -> str:
        """That of the released file."""
        return "cosine" if self.size == 64 else "linear"

    def gradient(self, classifier: Any) -> Gradient:
        """At x, by this classifier."""
        ab = float(classifier.schedule.alpha_bar[TIMESTEP])
        return Gradient(classifier, self.x, (1 - ab) ** 0.5, self.y, ab**0.5)

    @property
    def x(self) -> torch.Tensor:
        """Noise, the same each time."""
        chance = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch, 3, self.size, self.size, generator=chance)
        return x.to(self.setup.device)

    @property
    def y(self) -> torch.Tensor:
        """A class for each image."""
        return torch.arange(self.batch, device=self.setup.device) + 1

    def original(self, network: Any) -> Any:
        """A function that computes the original's gradient."""
        t = torch.full((self.batch,), TIMESTEP, device=self.setup.device)
        return partial(reference().their_gradient, network, self.x, t, self.y)


def parts(setup: Setup) -> list[Part]:
    """Times of all, then the rest: the profiler leaves launches slower than they were."""
    cases = [Case(setup, *case) for case in setup.pick(list(CASES), [(64, 1)])]
    measures = (times, accuracy, memory, kernels)
    return [
        (f"{case.name}, {measure.__name__}", partial(measure, case))
        for measure in measures
        for case in cases
    ]


def times(case: Case) -> Iterator[Row]:
    """By the clock: ours as a graph and eagerly, and the original's."""
    theirs = case.theirs()
    runs = {
        "original, fp32": case.original(theirs),
        "original, fp16": case.original(reference().in_fp16(theirs)),
    }
    gradients = {dtype: case.ours(theirs, dtype) for dtype in DTYPES}
    graphs = {}
    for dtype, gradient in gradients.items():
        runs[f"{dtype}, eager"] = gradient.eager
        graphs[dtype], runs[graphs[dtype]] = as_graph(gradient, dtype)
    seconds = seconds_in_turn(runs, case.setup.pick(10, 1), warm=case.setup.pick(2, 0))
    for name, value in seconds.items():
        yield Row(f"{case.name}, {name}", "time", value * 1e3, unit=" ms")
    for dtype in ("fp32", "fp16"):
        against = f"original, {dtype}"
        for name in (f"{dtype}, eager", graphs[dtype]):
            bar = RATIO if name == graphs["fp16"] else None
            yield Row(f"{case.name}, {name}", against, seconds[name] / seconds[against], bar)
    for gradient in gradients.values():
        gradient.close()


def accuracy(case: Case) -> Iterator[Row]:
    """How near ours is to the original's in fp32."""
    theirs = case.theirs()
    against = "original's in fp32"
    with exact_fp32():
        expected = case.original(theirs)()
        for dtype in DTYPES:
            gradient = case.ours(theirs, dtype)
            name, replayed = as_graph(gradient, dtype)
            got = replayed()
            gradient.close()
            name = f"{case.name}, {name}"
            if dtype == "fp32":
                error = (got - expected).abs().max() / expected.abs().max()
                yield Row(f"{name}: largest difference", against, error.item(), 1e-4)
            else:
                cosine = F.cosine_similarity(got.flatten(1), expected.flatten(1)).min().item()
                yield Row(f"{name}: 1 - cosine", against, 1 - cosine, 1e-3)


def memory(case: Case) -> Iterator[Row]:
    """The pool of the graph, against what the pack asks ComfyUI for."""
    theirs = case.theirs()
    for dtype in DTYPES:
        gradient = case.ours(theirs, dtype)
        pool = gradient.pool_bytes()
        is_graph = gradient.is_graph
        gradient.close()
        layout, size = gradient.classifier.layout, (case.size, case.size)
        estimate = case.batch * gradient_bytes(layout, size, DTYPES[dtype])
        name = f"{case.name}, {dtype}, memory of the graph"
        if is_graph:
            yield Row(name, "estimate", pool / estimate, 1.0)
            yield Row(name, "size", pool / 2**20, unit=" MiB")


def kernels(case: Case) -> Iterator[Row]:
    """What the GPU itself computes, without the gaps in which it waits for launches."""
    theirs = case.theirs()
    runs = {dtype: case.ours(theirs, dtype).eager for dtype in DTYPES}
    runs["original, fp16"] = case.original(reference().in_fp16(theirs))
    for name, run in runs.items():
        run()
        found = kernels_of(run, case.setup.pick(3, 1))
        bar = case.setup.bar(CASES.get((case.size, case.batch))) if name == "fp16" else None
        yield Row(f"{case.name}, {name}, kernels", "time", total(found), bar, unit=" ms")
        launches = sum(kernel.launches for kernel in found)
        yield Row(f"{case.name}, {name}, kernels", "launches", launches, unit=" launches")
        if name == "fp16":
            for kind, milliseconds in by_kind(found).items():
                yield Row(f"{case.name}, {name}: {kind}", "time", milliseconds, unit=" ms")
