"""Numbers that a device has computed, brought to main memory without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Where an event tells when a copy has arrived. Elsewhere values stay on the device until asked for.
WITH_EVENTS = ("cuda", "xpu")


class HostCopy:
    """Values of a device, on their way to main memory while the device goes on computing."""

    def __init__(self, values: Tensor):
        self._event: Any = None
        self._values = values.detach()
        self._here = values.device.type == "cpu"
        if values.device.type in WITH_EVENTS:
            device = getattr(torch, values.device.type)
            # into pinned memory, which torch chooses for such a copy
            self._values = self._values.to("cpu", non_blocking=True)
            self._event = device.Event()
            self._event.record(device.current_stream(values.device))

    @property
    def arrived(self) -> bool:
        """Whether `wait` has them at once."""
        return self._here or (self._event is not None and self._event.query())

    def wait(self) -> Tensor:
        """The values, on the CPU; waits for them where they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.cpu()


def device_of(network: torch.nn.Module, otherwise: torch.device) -> torch.device:
    """Where a network computes: where its weights are."""
    return next((weight.device for weight in network.parameters()), otherwise)


def to_device(device: torch.device, values: Tensor) -> Tensor:
    """The values on that device; nobody waits for the copy.

    To main memory the copy is waited for: there it would be read before it has arrived.
    """
    return values.to(device, non_blocking=device.type != "cpu")
