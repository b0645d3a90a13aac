"""Samples of a diffusion model during its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.atomic_write import atomic_path
from ..core.images import save_grid
from ..sampling.generate import SamplingConfig, generate
from ..sampling.model import DiffusionModel

ROWS = 4


class Sampler:
    """Samples a grid from the averaged network: one column per class, always the same noise.

    Without classes, it is a square grid. cfg is used if the network has a null class.
    """

    def __init__(self, output: str | Path, schedule: str, cfg: float):
        self.output, self.schedule, self.cfg = Path(output), schedule, cfg

    def __call__(self, network: Any, step: int) -> None:
        """Writes the grid of this step into a file next to the model's."""
        model = DiffusionModel(network, self.schedule)
        columns = min(model.num_classes, 10) or ROWS
        config = SamplingConfig(
            num_samples=ROWS * columns,
            batch_size=ROWS * columns,
            label=list(range(columns)) if model.num_classes else "random",
            cfg=self.cfg if model.layout.null_class is not None else 1.0,
            respacing="ddim25",
        )
        with torch.no_grad():
            images, _ = generate(model, None, config, title=f"samples at step {step}")
        picture = self.output.with_name(f"{self.output.stem}_step_{step:07}.png")
        with atomic_path(picture) as temporary:
            save_grid(temporary, images, columns)
