"""What a diffusion model draws while it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.atomic_write import atomic_path
from ..core.images import save_grid
from ..sampling.generate import SamplingConfig, generate
from ..sampling.model import DiffusionModel

ROWS = 4


def sample_path(output: Path, step: int) -> Path:
    """Where the picture of that step goes: beside the model file."""
    return output.with_name(f"{output.stem}_step_{step:07}.png")


class Sampler:
    """Draws a picture of the averaged network: a column for each class, the same noise each time.

    Without classes, a square of images. cfg is used where the network has a null class.
    """

    def __init__(self, output: str | Path, schedule: str, cfg: float, respacing: str = "ddim25"):
        self.output = Path(output)
        self.schedule, self.cfg, self.respacing = schedule, cfg, respacing

    def __call__(self, network: Any, step: int) -> None:
        """Writes it."""
        model = DiffusionModel(network, self.schedule)
        columns = min(model.num_classes, 10) or ROWS
        job = SamplingConfig(
            num_samples=ROWS * columns,
            batch_size=ROWS * columns,
            label=list(range(columns)) if model.num_classes else "random",
            cfg=self.cfg if model.layout.null_class is not None else 1.0,
            respacing=self.respacing,
        )
        with torch.no_grad():
            images, _ = generate(model, None, job, title=f"samples at step {step}")
        with atomic_path(sample_path(self.output, step)) as temporary:
            save_grid(temporary, images, columns)
