"""What a run cost: counted at the networks themselves, and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..classifiers.base import Classifier
from ..core.distributed import Processes
from ..sampling.model import DiffusionModel


@dataclass
class ComputeCost:
    """passes: conditionings that the diffusion network was run for, one for each image in each
    call and two where CFG needs both. gradients: of the classifier, one for each image. seconds:
    of the whole block.
    """

    passes: float = 0
    gradients: float = 0
    seconds: float = 0.0

    def per_image(self, images: int) -> ComputeCost:
        """The share of one of so many images."""
        return ComputeCost(self.passes / images, self.gradients / images, self.seconds / images)

    def of_all(self, processes: Processes) -> ComputeCost:
        """The counts of all processes together, and the time of the slowest."""
        shares = processes.gathered(self)
        return ComputeCost(
            passes=sum(share.passes for share in shares),
            gradients=sum(share.gradients for share in shares),
            seconds=max(share.seconds for share in shares),
        )


@contextmanager
def count_compute(model: DiffusionModel, classifier: Classifier | None) -> Iterator[ComputeCost]:
    """Yields a Work that counts what the two networks do in the block; seconds come at its end."""
    work = ComputeCost()

    def passed(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        work.passes += len(output)

    def went_back(gradient: Tensor) -> None:
        work.gradients += len(gradient)

    def classified(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(went_back)

    hooks = [model.network.register_forward_hook(passed)]
    if classifier is not None:
        hooks.append(classifier.network.register_forward_hook(classified))
    start = time.perf_counter()
    try:
        yield work
    finally:
        work.seconds = time.perf_counter() - start
        for hook in hooks:
            hook.remove()
