"""A 2-D mixture of Gaussians in three classes: samples, score, expectations, networks, all exact.

x (B, 2) = alpha x0 + sigma eps; sigma and alpha are numbers or (B, 1).
"""

from __future__ import annotations

import torch
from torch import nn

from guidance import DiffusionModel
from guidance.adm import UNetLayout
from guidance.core.noise import NoiseSchedule

MEANS = torch.tensor(
    [[-1.0, 0.3], [-0.4, 1.2], [0.9, 0.8], [1.1, -0.9], [0.2, -1.3]], dtype=torch.float64
)
CLASS = torch.tensor([0, 0, 1, 1, 2])  # of each component
WEIGHTS = torch.tensor([0.16, 0.06, 0.4, 0.3, 0.08], dtype=torch.float64)
SPREAD = 0.35


def exact_samples(label, seed, count):
    """From p(x0), or p(x0 | label); (count, 2)."""
    generator = torch.Generator().manual_seed(seed)
    weights = WEIGHTS if label is None else WEIGHTS * (label == CLASS)
    component = torch.multinomial(weights, count, replacement=True, generator=generator)
    return MEANS[component].float() + SPREAD * torch.randn(count, 2, generator=generator)


def distance(a, b):
    """Sliced Wasserstein distance (W1): the mean over 64 directions."""
    angles = torch.arange(64) * torch.pi / 64
    directions = torch.stack([angles.cos(), angles.sin()])
    return ((a @ directions).sort(dim=0)[0] - (b @ directions).sort(dim=0)[0]).abs().mean().item()


def class_mean(label=None):
    """E[x0], or E[x0 | label]; (2,)."""
    weights = WEIGHTS if label is None else WEIGHTS * (label == CLASS)
    return (weights[:, None] * MEANS).sum(dim=0) / weights.sum()


def log_joint(x, sigma, alpha, label=None):
    """log p(x, component) and a constant, (B, 5); minus infinity outside the label's class."""
    distance = (x[:, None] - _each(alpha) * MEANS.to(x)).square().sum(dim=2)
    joint = WEIGHTS.to(x).log() - 0.5 * distance / ((alpha * SPREAD) ** 2 + sigma**2)
    return joint if label is None else joint.masked_fill(label != CLASS, -torch.inf)


def denoised(x, sigma, alpha, label=None):
    """E[x0 | x], or E[x0 | x, label]: the posterior's mix of each component's own."""
    share = log_joint(x, sigma, alpha, label).softmax(dim=1)
    gain = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
    means = MEANS.to(x)
    each = means + _each(gain) * (x[:, None] - _each(alpha) * means)
    return (share[..., None] * each).sum(dim=1)


def score(x, sigma, alpha, label=None):
    """grad log p(x), or grad log p(x | label), without autograd."""
    share = log_joint(x, sigma, alpha, label).softmax(dim=1)
    away = _each(alpha) * MEANS.to(x) - x[:, None]
    return (share[..., None] * away).sum(dim=1) / ((alpha * SPREAD) ** 2 + sigma**2)


def network_output(kind, x, sigma, alpha, sigma_data=0.5, noise_scale=1.0):
    """What a perfect network of that kind puts out, by its definition.

    eps comes from the score. Flow: noise_scale is within sigma here, which multiplies unit noise.
    """
    eps, x0 = -sigma * score(x, sigma, alpha), denoised(x, sigma, alpha)
    if kind == "eps":
        return eps
    if kind == "v":  # Salimans & Ho 2022, in VP coordinates
        size = (1 + sigma**2) ** 0.5
        return eps / size - x0 * sigma / size
    if kind == "edm":  # Karras et al. 2022, table 1
        total = sigma**2 + sigma_data**2
        c_skip, c_out = sigma_data**2 / total, sigma * sigma_data / total**0.5
        return (x0 - c_skip * x) / c_out
    if kind == "flow":  # Lipman et al. 2022: dx/dsigma
        return noise_scale * eps - x0
    return x0


def logits(x, sigma, alpha):
    """log p(y | x) and a constant, (B, 3)."""
    joint = log_joint(x, sigma, alpha)
    return torch.stack([joint[:, k == CLASS].logsumexp(dim=1) for k in range(3)], dim=1)


def points(sigma, alpha, count=40):
    """Where x lands, (count, 2), float64."""
    generator = torch.Generator().manual_seed(2)
    x0 = MEANS[torch.randint(0, 5, (count,), generator=generator)]
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return alpha * x0 + (sigma**2 + (alpha * SPREAD) ** 2) ** 0.5 * noise


class ExactNetwork(nn.Module):
    """A network of x_vp (B, 2, ...) and the timestep, in float64."""

    def __init__(self, schedule):
        super().__init__()
        self.log_ratios = nn.Parameter(schedule.ratios.log(), requires_grad=False)
        self.compute_dtype = torch.float64

    def levels(self, t):
        """sigma and alpha (B, 1) of timesteps (B,)."""
        low = t.long().clamp(max=len(self.log_ratios) - 2)
        near, far = self.log_ratios[low], self.log_ratios[low + 1]
        ratio = torch.lerp(near, far, (t - low).to(near)).exp()[:, None]
        alpha = 1 / (1 + ratio**2).sqrt()
        return ratio * alpha, alpha


class ExactClassifier(ExactNetwork):
    """Logits of p(y | x_t) in the ADM convention."""

    def forward(self, x_vp, t):
        return logits(x_vp.flatten(1), *self.levels(t))


class CleanClassifier(nn.Module):
    """Logits of p(y | x0) for images (B, 3, 1, 1) of the mixture, see ExactUNet."""

    def forward(self, x0):
        return logits(x0[:, :2].flatten(1), 0.0, 1.0)


class ExactUNet(ExactNetwork):
    """eps in the ADM convention; the images (B, 3, 1, 1) are a point and a third channel of 0."""

    layout = UNetLayout(model_channels=64, num_res_blocks=1, channel_mult=(1,), out_channels=3)

    def forward(self, x_vp, t, labels):
        (sigma, alpha), flat = self.levels(t), x_vp.flatten(1)
        point = network_output("eps", flat[:, :2], sigma, alpha)
        return torch.cat([point, flat[:, 2:] / sigma], dim=1).view_as(x_vp)


def exact_diffusion(schedule="linear"):
    """The DiffusionModel that draws the mixture; do not clip its x0."""
    return DiffusionModel(ExactUNet(NoiseSchedule(schedule)), schedule)


def _each(level):
    """A level as a factor of (B, 5, 2)."""
    return level[..., None] if isinstance(level, torch.Tensor) else level
