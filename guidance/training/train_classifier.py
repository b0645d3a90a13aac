"""Training a classifier on noisy inputs (Dhariwal & Nichol 2021, section 4, table 12)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adm import ClassifierLayout, HalfUNet
from ..noise import NoiseSchedule
from .data import LabelledImages, batches, shifted, to_unit_range
from .loop import Recipe, optimise


def train_classifier(
    data: LabelledImages,
    layout: ClassifierLayout,
    schedule: NoiseSchedule,
    recipe: Recipe,
    *,
    clean: bool = False,
    shift: int = 0,
    device: str = "cpu",
) -> tuple[HalfUNet, list[float]]:
    """Cross-entropy at uniformly drawn timesteps, or at t = 0 without noise when `clean`."""
    torch.manual_seed(recipe.seed)
    network = HalfUNet(layout, device=device)
    network.check_size(data.images.shape[-2:])
    stream = batches(data, recipe.batch_size, recipe.seed)
    alpha_bar = schedule.alpha_bar.float().to(device)

    def loss(net: nn.Module) -> Tensor:
        images, labels = next(stream)
        x0, y = shifted(images, shift).to(device), labels.to(device)
        t = torch.zeros(len(x0), dtype=torch.long, device=device)
        if clean:
            return F.cross_entropy(net(x0, t.float()).float(), y)
        t = torch.randint(0, len(schedule), (len(x0),), device=device)
        return F.cross_entropy(net(diffuse(x0, alpha_bar[t]), t.float()).float(), y)

    average, losses = optimise(network, loss, recipe, "train-classifier")
    assert isinstance(average, HalfUNet)
    return average, losses


def diffuse(x0: Tensor, alpha_bar: Tensor, noise: Tensor | None = None) -> Tensor:
    """sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, alpha_bar (B,) (Ho et al. 2020, eq. 4)."""
    noise = torch.randn_like(x0) if noise is None else noise
    ab = alpha_bar.view(-1, 1, 1, 1)
    return ab.sqrt() * x0 + (1 - ab).sqrt() * noise


@torch.no_grad()
def accuracy(
    network: nn.Module, data: LabelledImages, alpha_bar: float = 1.0, t: float = 0.0, seed: int = 0
) -> float:
    """Share of `data` that the classifier names rightly at one noise level."""
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for start in range(0, len(data), 250):
        x0 = to_unit_range(data.images[start : start + 250])
        noise = torch.randn(x0.shape, generator=generator)
        x = diffuse(x0, torch.full((len(x0),), alpha_bar), noise).to(device)
        guess = network(x, torch.full((len(x),), t, device=device)).argmax(dim=1).cpu()
        right += int((guess == data.labels[start : start + 250]).sum())
    return right / len(data)
