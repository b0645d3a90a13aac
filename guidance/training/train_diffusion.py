"""Training a diffusion U-Net, with label dropout for classifier-free guidance.

Source: Ho et al. 2020, eq. 14 (noise prediction); Nichol & Dhariwal 2021, eq. 15-16 (learned
variance, hybrid loss); Ho & Salimans 2022, algorithm 1 (joint training by label dropout).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adm import UNet, UNetLayout
from ..noise import NoiseSchedule
from .data import LabelledImages, batches, shifted
from .loop import Recipe, optimise
from .train_classifier import diffuse


def train_diffusion(
    data: LabelledImages,
    layout: UNetLayout,
    schedule: NoiseSchedule,
    recipe: Recipe,
    *,
    p_uncond: float = 0.1,
    shift: int = 0,
    device: str = "cpu",
    weights: dict[str, Tensor] | None = None,
) -> tuple[UNet, list[float]]:
    """Trains on eps; with probability `p_uncond` a label becomes the layout's null class.

    `weights` (a state dict of the same layout) continues an earlier training.
    """
    if not 0 <= p_uncond <= 1:
        raise ValueError(f"p_uncond is {p_uncond}; it is a share, from 0 to 1.")
    if layout.null_class is None and layout.num_classes is not None and p_uncond > 0:
        raise ValueError("p_uncond needs a layout with a null class.")
    torch.manual_seed(recipe.seed)
    network = UNet(layout, device=device)
    network.check_size(data.images.shape[-2:])
    if weights is not None:
        network.load_state_dict(weights)
    stream = batches(data, recipe.batch_size, recipe.seed)
    variance = VarianceLoss(schedule, device) if layout.learned_variance else None
    alpha_bar = schedule.alpha_bar.float().to(device)

    def loss(net: nn.Module) -> Tensor:
        images, labels = next(stream)
        x0 = shifted(images, shift).to(device)
        t = torch.randint(0, len(schedule), (len(x0),), device=device)
        noise = torch.randn_like(x0)
        x = diffuse(x0, alpha_bar[t], noise)
        y = drop_labels(labels.to(device), layout, p_uncond)
        output = net(x, t.float(), y).float()
        eps = output[:, : layout.image_channels]
        value = F.mse_loss(eps, noise)
        if variance is None:
            return value
        return value + variance(x0, x, t, eps.detach(), output[:, layout.image_channels :])

    average, losses = optimise(network, loss, recipe, "train-diffusion")
    assert isinstance(average, UNet)
    return average, losses


def drop_labels(labels: Tensor, layout: UNetLayout, p_uncond: float) -> Tensor | None:
    """Labels, a share `p_uncond` of them the null class; None for an unconditional model."""
    if layout.num_classes is None:
        return None
    if layout.null_class is None:
        return labels
    dropped = torch.rand(labels.shape, device=labels.device) < p_uncond
    return torch.where(dropped, layout.null_class, labels)


class VarianceLoss:
    """The variational bound as a function of the learned variance alone, in bits per dimension.

    KL of q(x_{t-1} | x_t, x0) from the model's step. At t = 0 the posterior with its clipped
    variance stands in for the discretised likelihood. The weight against eps is 1 / 1000 of the
    sum over 1000 steps, Nichol & Dhariwal's lambda.
    """

    def __init__(self, schedule: NoiseSchedule, device: str):
        ab = schedule.alpha_bar
        previous = torch.cat([ab.new_ones(1), ab[:-1]])
        beta = 1 - ab / previous
        posterior = beta * (1 - previous) / (1 - ab)
        posterior[0] = posterior[1]
        table = {
            "ab": ab,
            "x0": previous.sqrt() * beta / (1 - ab),
            "low": posterior.log(),
            "high": beta.log(),
        }
        self.table = {name: values.float().to(device) for name, values in table.items()}

    def __call__(self, x0: Tensor, x: Tensor, t: Tensor, eps: Tensor, v: Tensor) -> Tensor:
        ab, to_mean, low, high = (
            self.table[name][t].view(-1, 1, 1, 1) for name in ("ab", "x0", "low", "high")
        )
        predicted = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
        log_variance = low + (v + 1) / 2 * (high - low)
        squared = (to_mean * (x0 - predicted)) ** 2
        kl = 0.5 * (log_variance - low - 1 + ((low - log_variance).exp()))
        kl = kl + 0.5 * squared * (-log_variance).exp()
        return kl.mean() / torch.log(torch.tensor(2.0))
