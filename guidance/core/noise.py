"""Noise schedules, and the coordinates that samplers use for images.

Everything here is written for x = alpha * x0 + sigma * eps. Variance exploding (EPS, V and EDM
samplers in ComfyUI): alpha = 1. Flow: alpha = 1 - sigma. Variance preserving (VP; Ho et al. 2020,
eq. 4): alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar). The noise-to-signal ratio
sigma / alpha is the same in all of them, and it determines the timestep.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .host_copy import to_device

# kinds of devices that do not support float64, or not all of them
WITHOUT_FLOAT64 = ("mps", "xpu", "npu", "privateuseone")
SCHEDULE_NAMES = ("linear", "cosine")
NUM_TIMESTEPS = 1000


def linear_betas() -> np.ndarray:
    """beta from 1e-4 to 0.02 (Ho et al. 2020, sec. 4)."""
    return np.linspace(1e-4, 2e-2, NUM_TIMESTEPS, dtype=np.float64)


def cosine_betas() -> np.ndarray:
    """alpha_bar = cos^2, betas at most 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    share = np.arange(NUM_TIMESTEPS + 1, dtype=np.float64) / NUM_TIMESTEPS
    alpha_bar = np.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def alpha_bars(schedule: str | Tensor) -> Tensor:
    """alpha_bar of every timestep, float64 (T,), from "linear", "cosine" or a tensor of values.

    Raises ValueError for another name, or for values that do not strictly fall between 1 and 0.
    """
    if isinstance(schedule, str):
        if schedule not in SCHEDULE_NAMES:
            raise ValueError(
                f"noise_schedule is {schedule!r}; expected one of {', '.join(SCHEDULE_NAMES)} "
                "or a 1-D tensor of alpha_bar."
            )
        betas = linear_betas() if schedule == "linear" else cosine_betas()
        return torch.from_numpy(np.cumprod(1 - betas))
    values = torch.as_tensor(schedule, dtype=torch.float64).detach().cpu()
    wrong = _what_is_wrong(values)
    if wrong:
        raise ValueError(
            f"noise_schedule {wrong}; expected a 1-D tensor of at least two alpha_bar values that "
            "strictly fall and stay between 0 and 1."
        )
    return values


def _what_is_wrong(values: Tensor) -> str | None:
    if values.ndim != 1 or len(values) < 2:
        return f"is a tensor of shape {tuple(values.shape)}"
    outside = values[~((values > 0) & (values < 1))]
    if len(outside):
        return f"holds {outside[0].item():.6g}"
    rising = (values.diff() >= 0).nonzero()
    if len(rising):
        index = int(rising[0])
        return f"holds {values[index + 1].item():.6g} after {values[index].item():.6g}"
    return None


class NoiseSchedule:
    """A discrete schedule of alpha_bar, with the timestep of a noise-to-signal ratio."""

    def __init__(self, schedule: str | Tensor):
        self.name = schedule if isinstance(schedule, str) else "custom"
        self.alpha_bar = alpha_bars(schedule)
        self.ratios = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        self.max_ratio = float(self.ratios[-1])
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def timestep(self, ratio: Tensor) -> Tensor:
        """The fractional timestep at which sigma / alpha is `ratio`, clamped to 0..T-1.

        Linear in log(ratio) between neighbours. Keeps the shape and the float dtype.
        """
        table = self._log_ratios(ratio)
        wanted = ratio.log().clamp(table[0], table[-1])
        above = torch.searchsorted(table, wanted.contiguous()).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return (above - 1) + (wanted - low) / (high - low)

    def _log_ratios(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = to_device(like.device, self.ratios.log().to(like.dtype))
        return self._tables[key]


def vp_scale(sigma: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """sqrt(alpha^2 + sigma^2): x_vp is x = alpha x0 + sigma eps divided by it."""
    return (alpha**2 + sigma**2) ** 0.5


def tweedie_weight(sigma: Tensor, alpha: Tensor) -> Tensor:
    """sigma^2 / alpha: the weight of grad_x log p(y | x) in the denoised image.

    Tweedie's formula: alpha E[x0 | x] = x + sigma^2 grad_x log p(x), and so for p(x | y).
    """
    return sigma**2 / alpha


def within_range(sigma: Tensor, alpha: Tensor | float, max_ratio: float) -> tuple[Tensor, Tensor]:
    """sigma and alpha of the same x_vp, with sigma / alpha clamped to at most `max_ratio`.

    Above its range, a classifier is evaluated at `max_ratio`, so the weight of guidance must also
    use `max_ratio`. Otherwise it would grow without limit, and be undefined at the start of a flow,
    where alpha is 0. sqrt(alpha^2 + sigma^2) stays the same. Inside the range nothing changes.
    """
    alpha = torch.as_tensor(alpha).to(sigma)
    inside = sigma <= alpha * max_ratio
    size = vp_scale(sigma, alpha)
    limit = (1 + max_ratio**2) ** 0.5
    near = torch.where(inside, sigma, size * (max_ratio / limit))
    return near, torch.where(inside, alpha, size / limit)


def sigma_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """The variance-exploding sigma of a timestep: sqrt((1 - alpha_bar) / alpha_bar)."""
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


def alpha_bar_from_sigma(sigma: Tensor) -> Tensor:
    """Inverse of `sigma_from_alpha_bar`: 1 / (1 + sigma^2)."""
    return 1 / (1 + sigma**2)


def per_image(values: Tensor | float, like: Tensor) -> Tensor | float:
    """Values (B,) reshaped to (B, 1, ...) to broadcast with `like` (B, ...); numbers unchanged."""
    if isinstance(values, Tensor) and values.ndim == 1:
        return values.view(-1, *[1] * (like.ndim - 1))
    return values


def mean_norm(values: Tensor) -> Tensor:
    """The L2 norm of each image (B, ...), averaged over the batch."""
    return values.detach().float().flatten(1).norm(dim=1).mean()


def levels_like(x: Tensor, *levels: Tensor | float) -> tuple[Tensor, ...]:
    """sigma, alpha as (B,) on x's device; in float64 if supported, for exact timesteps."""
    exact = torch.float32 if x.device.type in WITHOUT_FLOAT64 else torch.float64
    tensors = (_on_device(level, exact, x.device) for level in levels)
    return tuple(level.reshape(-1).expand(len(x)) for level in tensors)


def _on_device(level: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new tensor; does not wait for the device."""
    if not isinstance(level, Tensor):
        return torch.full((), level, dtype=dtype, device=device)
    # clone: a sampler's sigma may be an inference tensor
    if level.device.type not in WITHOUT_FLOAT64:
        level = level.to(dtype)
    return to_device(device, level).to(dtype).clone()
