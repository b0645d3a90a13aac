"""The cost of a run: counted at the networks, and timed."""

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
    """passes: of the diffusion network, one per image and call, or two if CFG needs both.
    gradients: of the classifier, one per image. seconds: of the whole block.
    """

    passes: float = 0
    gradients: float = 0
    seconds: float = 0.0

    def per_image(self, images: int) -> ComputeCost:
        """The cost per image, for this number of images."""
        return ComputeCost(self.passes / images, self.gradients / images, self.seconds / images)

    def of_all(self, processes: Processes) -> ComputeCost:
        """The sum of the counts of all processes, and the time of the slowest one."""
        shares = processes.gathered(self)
        return ComputeCost(
            passes=sum(share.passes for share in shares),
            gradients=sum(share.gradients for share in shares),
            seconds=max(share.seconds for share in shares),
        )


@contextmanager
def count_compute(model: DiffusionModel, classifier: Classifier | None) -> Iterator[ComputeCost]:
    """Yields a ComputeCost that counts the two networks in the block; sets seconds at the end."""
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
