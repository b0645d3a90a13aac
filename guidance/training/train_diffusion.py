"""Training a diffusion U-Net, with label dropout for classifier-free guidance.

Source: Ho et al. 2020, eq. 14 (noise prediction); Nichol & Dhariwal 2021, eq. 15-16 (learned
variance, hybrid loss); Ho & Salimans 2022, algorithm 1 (joint training by label dropout).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adm import UNet, UNetLayout
from ..core.noise import NoiseSchedule
from .data import Augment, LabelledImages
from .loop import OptimizerConfig, Trained, TrainingContext, optimise
from .rng import DROPOUT, generator
from .train_classifier import NOTHING, diffuse, drawing, initialised


def train_diffusion(
    data: LabelledImages,
    layout: UNetLayout,
    schedule: NoiseSchedule,
    recipe: OptimizerConfig,
    *,
    p_uncond: float = 0.1,
    augment: Augment = NOTHING,
    run: TrainingContext | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Trained:
    """Trains on eps; with probability `p_uncond` a label becomes the layout's null class.

    `weights` (a state dict of the same layout) continues from an earlier training.
    """
    if not 0 <= p_uncond <= 1:
        raise ValueError(f"p_uncond is {p_uncond}; it must be from 0 to 1.")
    if layout.null_class is None and layout.num_classes is not None and p_uncond > 0:
        raise ValueError("p_uncond needs a layout with a null class.")
    where = run or TrainingContext()
    network = initialised(lambda: UNet(layout, device=where.device), recipe.seed)
    network.check_size(data.images.shape[-2:])
    if weights is not None:
        network.load_state_dict(weights)
    variance = VarianceLoss(schedule, where.device) if layout.learned_variance else None
    alpha_bar = schedule.alpha_bar.float().to(where.device)
    drawn = drawing(data, recipe, len(schedule), augment, where.device)

    def draw(step: int) -> tuple[Tensor, ...]:
        x0, noise, t, labels = drawn(step)
        return x0, noise, t, drop_labels(labels, layout, p_uncond, recipe.seed, step)

    def loss(net: nn.Module, x0: Tensor, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        x = diffuse(x0, alpha_bar[t], noise)
        y = None if layout.num_classes is None else labels
        output = net(x, t.float(), y).float()
        eps = output[:, : layout.image_channels]
        value = F.mse_loss(eps, noise)
        if variance is None:
            return value
        return value + variance(x0, x, t, eps.detach(), output[:, layout.image_channels :])

    return optimise(network, draw, loss, recipe, where)


def drop_labels(
    labels: Tensor, layout: UNetLayout, p_uncond: float, seed: int = 0, step: int = 0
) -> Tensor:
    """Labels; a fraction `p_uncond` becomes the null class, if the layout has one."""
    if layout.null_class is None:
        return labels
    chance = generator(seed, DROPOUT, step, device=labels.device)
    dropped = torch.rand(labels.shape, generator=chance, device=labels.device) < p_uncond
    return torch.where(dropped, layout.null_class, labels)


class VarianceLoss:
    """The variational bound as a function of the learned variance only, in bits per dimension.

    It is the KL divergence of q(x_{t-1} | x_t, x0) from the model's step. At t = 0, the posterior
    with its clipped variance replaces the discretised likelihood. The weight relative to eps is
    1 / 1000 of the sum over 1000 steps, Nichol & Dhariwal's lambda.
    """

    def __init__(self, schedule: NoiseSchedule, device: str):
        ab = schedule.alpha_bar
        previous = torch.cat([ab.new_ones(1), ab[:-1]])
        beta = 1 - ab / previous
        posterior = beta * (1 - previous) / (1 - ab)
        posterior[0] = posterior[1]
        tables = (ab, previous.sqrt() * beta / (1 - ab), posterior.log(), beta.log())
        self.tables = [table.float().to(device) for table in tables]

    def __call__(self, x0: Tensor, x: Tensor, t: Tensor, eps: Tensor, v: Tensor) -> Tensor:
        ab, to_mean, low, high = (table[t].view(-1, 1, 1, 1) for table in self.tables)
        predicted = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
        log_variance = low + (v + 1) / 2 * (high - low)
        squared = (to_mean * (x0 - predicted)) ** 2
        kl = 0.5 * (log_variance - low - 1 + ((low - log_variance).exp()))
        kl = kl + 0.5 * squared * (-log_variance).exp()
        return kl.mean() / torch.log(torch.tensor(2.0))
