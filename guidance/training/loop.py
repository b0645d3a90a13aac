"""One optimisation loop for every training: AdamW, annealed rate, averaged weights, progress."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to optimise. The learning rate falls linearly to zero, as for the paper's classifiers."""

    steps: int
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    ema: float = 0.999
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"steps is {self.steps}, batch_size {self.batch_size}; both must be >= 1."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must fit into 64 bits.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be at least 0 and below 1.")


def optimise(
    network: nn.Module, loss: Callable[[nn.Module], Tensor], recipe: Recipe, title: str
) -> tuple[nn.Module, list[float]]:
    """Runs `recipe.steps` steps on `loss(network)`: (averaged network in eval mode, the losses)."""
    average = copy.deepcopy(network).eval().requires_grad_(False)
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    losses: list[float] = []
    network.train()
    with tqdm(total=recipe.steps, desc=title, unit="step", mininterval=1.0) as bar:
        for step in range(recipe.steps):
            _set_rate(optimizer, recipe.learning_rate * (1 - step / recipe.steps))
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
                value = loss(network)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            _average(average, network, min(recipe.ema, (1 + step) / (10 + step)))
            losses.append(value.item())
            recent = losses[-100:]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
            bar.update()
    return average, losses


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    ours = [p.data for p in average.parameters()]
    torch._foreach_lerp_(ours, [p.data for p in network.parameters()], 1 - decay)
