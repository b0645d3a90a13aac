"""AdamW, as one kernel where the device itself can decide that an update is left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.host_copy import WITH_EVENTS


def adamw(network: nn.Module, device: torch.device, **rates: Any) -> torch.optim.AdamW:
    """AdamW for the weights of a network: fused where `leaves_out` can be used.

    Elsewhere torch chooses, on a CPU always the same way, so that results stay the same bits.
    """
    fused = device.type in WITH_EVENTS and can_leave_out(device)
    return torch.optim.AdamW(network.parameters(), fused=fused or None, **rates)


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `leaves_out` works with this optimiser."""
    return bool(optimizer.defaults["fused"])


def leaves_out(optimizer: Any, stopped: Tensor) -> None:
    """While `stopped` () on the device is 1, and not 0, steps change neither weights nor state.

    Fused kernels have this for the loss scaling of fp16. The tensor is read on the device only.
    """
    optimizer.found_inf = stopped


def can_leave_out(device: torch.device) -> bool:
    """Tries `leaves_out` on one weight, since not every device and version of torch has it.

    Waits for the device, once for a training.
    """
    weight = nn.Parameter(torch.ones(1, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        optimizer = torch.optim.AdamW([weight], fused=True)
        leaves_out(optimizer, torch.ones((), device=device))
        optimizer.step()
    except RuntimeError:
        return False
    return float(weight.detach()) == 1 and float(optimizer.state[weight]["step"]) == 0
