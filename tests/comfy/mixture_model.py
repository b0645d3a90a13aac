"""A mixture of Gaussians: denoiser, class-conditional denoiser and noisy classifier, all exact."""

from __future__ import annotations

import torch
from torch import nn

from guidance.core.noise import NoiseSchedule

# What a network of each of core's kinds puts out.
OUTPUTS = {"EPS": "eps", "V_PREDICTION": "v", "V_PREDICTION_CONTINUOUS": "v"}
OUTPUTS |= {"EDM": "edm", "X0": "x0", "FLOW": "flow", "FLUX": "flow"}


class Mixture(nn.Module):
    """p(x0) is the mean of N(mean_k, spread^2 I) over the classes k; a noisy classifier network.

    Everything is written for x = x0 + sigma eps, except forward, which makes it the network of a
    noisy classifier: it takes x_vp and the timestep.
    """

    def __init__(self, seed=0, classes=4, shape=(3, 16, 16), spread=2.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.means = nn.Parameter(0.5 * torch.randn(classes, *shape, generator=generator))
        self.spread = spread
        ratios = NoiseSchedule("linear").ratios.log().float()
        self.log_ratios = nn.Parameter(ratios, requires_grad=False)

    def forward(self, x_vp, t):
        """Logits of p(class | x_t), (B, classes), from x_vp (B, C, H, W) and t (B,)."""
        below = t.long().clamp(max=len(self.log_ratios) - 2)
        low, high = self.log_ratios[below], self.log_ratios[below + 1]
        sigma = torch.lerp(low, high, t - below).exp()
        return self.logits(x_vp * (1 + sigma**2).sqrt().view(-1, 1, 1, 1), sigma)

    def logits(self, x, sigma):
        """log p(x | class) and a constant, (B, classes); sigma (B,)."""
        distance = (x[:, None] - self.means).flatten(2).square().sum(dim=2)
        return -0.5 * distance / (self.spread**2 + sigma**2)[:, None]

    def denoised(self, x, sigma, labels=None):
        """E[x0 | x], or E[x0 | x, label] for labels (B,)."""
        share = (self.logits(x, sigma)).softmax(dim=1)
        if labels is not None:
            share = nn.functional.one_hot(labels, len(self.means)).to(x)
        mean = torch.einsum("bk,kchw->bchw", share, self.means)
        sigma = sigma.view(-1, 1, 1, 1)
        return (self.spread**2 * x + sigma**2 * mean) / (self.spread**2 + sigma**2)
