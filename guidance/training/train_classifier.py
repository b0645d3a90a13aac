"""Training a classifier on noisy inputs (Dhariwal & Nichol 2021, section 4, table 12)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adm import ClassifierLayout, EncoderUNet
from ..core.noise import NoiseSchedule
from .data import Augment, LabelledImages
from .loop import Draw, OptimizerConfig, Trained, TrainingContext, optimise
from .placement import PlacedImages, place_of_draws
from .rng import STEP, VALIDATION, WEIGHTS, Batches, generator, seed_of

TIMESTEPS = (0, 100, 200, 300, 400, 500, 600, 800)  # levels at which accuracy is measured
VALIDATED = 500  # images used for validation during the training
NOTHING = Augment()
Network = TypeVar("Network", bound=nn.Module)


def train_classifier(
    data: LabelledImages,
    layout: ClassifierLayout,
    schedule: NoiseSchedule,
    recipe: OptimizerConfig,
    *,
    clean: bool = False,
    augment: Augment = NOTHING,
    held_out: LabelledImages | None = None,
    run: TrainingContext | None = None,
) -> Trained:
    """Cross-entropy at uniformly drawn timesteps, or at t = 0 without noise if `clean`.

    Validates on `held_out` during the training. Raises ValueError for a single class.
    """
    check_classes(data)
    where = run or TrainingContext()
    network = initialised(lambda: EncoderUNet(layout, device=where.device), recipe.seed)
    network.check_size(data.images.shape[-2:])
    if held_out is not None and len(held_out):
        some = held_out.pick(slice(VALIDATED))
        where = replace(where, validate=lambda net: validated(net, some, schedule, clean))
    ab = (torch.ones(1) if clean else schedule.alpha_bar.float()).to(where.device)

    def loss(net: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = diffuse(x0, ab[t], noise)
        return F.cross_entropy(net(x, t.float()).float(), y)

    draw = drawing(data, recipe, len(ab), augment, where.device)
    return optimise(network, draw, loss, recipe, where)


def drawing(
    data: LabelledImages,
    recipe: OptimizerConfig,
    timesteps: int,
    augment: Augment,
    device: str | torch.device = "cpu",
) -> Draw:
    """The data of a step of a training on this device: x0, noise, t, label of each image."""
    place = place_of_draws(device)
    placed = PlacedImages(data, place)
    batches = Batches(len(data), recipe.batch_size, recipe.seed)

    def draw(step: int) -> tuple[Tensor, ...]:
        chance = generator(recipe.seed, STEP, step, device=place)
        x0, labels = placed.batch(batches.at(step))
        x0 = augment(x0, chance)
        noise = torch.randn(x0.shape, generator=chance, device=place)
        t = torch.randint(0, timesteps, (len(x0),), generator=chance, device=place)
        return x0, noise, t, labels

    return draw


def initialised(build: Callable[[], Network], seed: int) -> Network:
    """A new network; torch's global random state stays the same."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, WEIGHTS))
        return build()


def check_classes(data: LabelledImages) -> None:
    """Raises ValueError for fewer than two classes."""
    if len(data.names) < 2 or len(data.labels.unique()) < 2:
        raise ValueError(
            f"There is one class only ({data.names[0] if data.names else 'without a name'}); a "
            "classifier needs two or more, each in a folder of its own."
        )


def diffuse(x0: Tensor, alpha_bar: Tensor, noise: Tensor) -> Tensor:
    """sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, alpha_bar (B,) (Ho et al. 2020, eq. 4)."""
    ab = alpha_bar.view(-1, 1, 1, 1)
    return ab.sqrt() * x0 + (1 - ab).sqrt() * noise


def validated(
    network: nn.Module, data: LabelledImages, schedule: NoiseSchedule, clean: bool = False
) -> dict[str, Any]:
    """{"loss": mean over the noise levels, "accuracy": {timestep: fraction correct}}.

    The noise is the same each time. A clean classifier has one level, without noise.
    """
    levels = {t: float(schedule.alpha_bar[t]) for t in TIMESTEPS if t < len(schedule)}
    levels = {0: 1.0} if clean else levels
    seen = {str(t): measured(network, data, alpha_bar, t) for t, alpha_bar in levels.items()}
    return {
        "loss": sum(loss for _, loss in seen.values()) / len(seen),
        "accuracy": {t: share for t, (share, _) in seen.items()},
    }


@torch.no_grad()
def measured(
    network: nn.Module, data: LabelledImages, alpha_bar: float, t: int
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy at one noise level."""
    device = next(network.parameters()).device
    chance = generator(0, VALIDATION, t)
    right, total = 0, 0.0
    for start in range(0, len(data), 250):
        x0 = data.x0(slice(start, start + 250))
        y = data.labels[start : start + 250]
        noise = torch.randn(x0.shape, generator=chance)
        x = diffuse(x0, torch.full((len(x0),), alpha_bar), noise).to(device)
        logits = network(x, torch.full((len(x),), float(t), device=device)).float().cpu()
        right += int((logits.argmax(dim=1) == y).sum())
        total += float(F.cross_entropy(logits, y, reduction="sum"))
    return right / len(data), total / len(data)
