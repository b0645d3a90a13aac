"""Noise schedules, and the coordinates that samplers carry images in.

Everything here is written for x = alpha * x0 + sigma * eps. Variance exploding (EPS, V and EDM
samplers in ComfyUI): alpha = 1. Flow: alpha = 1 - sigma. Variance preserving (VP; Ho et al. 2020,
eq. 4): alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar). The noise-to-signal ratio
sigma / alpha is the same in all of them, and is what finds a timestep.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .host_copy import to_device

# kinds of devices that do not have it, or not all of whom do
WITHOUT_FLOAT64 = ("mps", "xpu", "npu", "privateuseone")
SCHEDULE_NAMES = ("linear", "cosine")
NUM_TIMESTEPS = 1000


def linear_betas(steps: int = NUM_TIMESTEPS) -> np.ndarray:
    """beta from 1e-4 to 0.02 in 1000 steps, stretched for other counts (Ho et al. 2020, sec. 4)."""
    stretch = NUM_TIMESTEPS / steps
    return np.linspace(stretch * 1e-4, stretch * 2e-2, steps, dtype=np.float64)


def cosine_betas(steps: int = NUM_TIMESTEPS, offset: float = 0.008) -> np.ndarray:
    """alpha_bar = cos^2, betas at most 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    share = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((share + offset) / (1 + offset) * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def alpha_bars(schedule: str | Tensor) -> Tensor:
    """alpha_bar of every timestep, float64 (T,), from "linear", "cosine" or the values themselves.

    Raises ValueError for another name, or for values that do not fall from below 1 to above 0.
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
    """A discrete schedule of alpha_bar, and the way from a noise-to-signal ratio to a timestep."""

    def __init__(self, schedule: str | Tensor):
        self.name = schedule if isinstance(schedule, str) else "custom"
        self.alpha_bar = alpha_bars(schedule)
        self.ratios = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        self.max_ratio = float(self.ratios[-1])
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def timestep(self, ratio: Tensor) -> Tensor:
        """The timestep, fractional, where sigma / alpha is `ratio`; clamped to 0..T-1.

        Linear in log(ratio) between neighbours. Any shape and float dtype, kept.
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
    """What x = alpha x0 + sigma eps is divided by to become x_vp: sqrt(alpha^2 + sigma^2)."""
    return (alpha**2 + sigma**2) ** 0.5


def within_range(sigma: Tensor, alpha: Tensor | float, max_ratio: float) -> tuple[Tensor, Tensor]:
    """sigma and alpha of the same x_vp, with sigma / alpha brought down to at most `max_ratio`.

    Above its range a classifier answers for `max_ratio`, so guidance has to be weighed for
    `max_ratio` too: else it grows without end, and has no value at the flow's start, alpha 0.
    sqrt(alpha^2 + sigma^2) is kept; inside the range both come back as they are.
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
    """Values (B,) shaped (B, 1, ...) so that they multiply `like` (B, ...); numbers pass."""
    if isinstance(values, Tensor) and values.ndim == 1:
        return values.view(-1, *[1] * (like.ndim - 1))
    return values


def levels_like(x: Tensor, *levels: Tensor | float) -> tuple[Tensor, ...]:
    """sigma, alpha as (B,) on x's device; float64 where the device has it, for exact timesteps."""
    exact = torch.float32 if x.device.type in WITHOUT_FLOAT64 else torch.float64
    tensors = (_on_device(level, exact, x.device) for level in levels)
    return tuple(level.reshape(-1).expand(len(x)) for level in tensors)


def _on_device(level: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of its own; nobody waits for it."""
    if not isinstance(level, Tensor):
        return torch.full((), level, dtype=dtype, device=device)
    # clone: a sampler's sigma may be an inference tensor
    if level.device.type not in WITHOUT_FLOAT64:
        level = level.to(dtype)
    return to_device(device, level).to(dtype).clone()
