"""Copies of a device's values to main memory, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Devices with events that tell when a copy has arrived. On others, values stay on the device until
# they are read.
WITH_EVENTS = ("cuda", "xpu")


class HostCopy:
    """Values that are copied to main memory while the device continues to compute."""

    def __init__(self, values: Tensor):
        self._event: Any = None
        self._values = values.detach()
        self._here = values.device.type == "cpu"
        if values.device.type in WITH_EVENTS:
            device = getattr(torch, values.device.type)
            # torch uses pinned memory for such a copy
            self._values = self._values.to("cpu", non_blocking=True)
            self._event = device.Event()
            self._event.record(device.current_stream(values.device))

    @property
    def arrived(self) -> bool:
        """Whether `wait` would return at once."""
        return self._here or (self._event is not None and self._event.query())

    @property
    def on_its_way(self) -> bool:
        """Whether it arrives by itself; elsewhere only `wait` copies, and waits for everything."""
        return self._here or self._event is not None

    def wait(self) -> Tensor:
        """The values on the CPU; waits if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.cpu()


def device_of(network: torch.nn.Module, otherwise: torch.device) -> torch.device:
    """The device of a network: that of its weights."""
    return next((weight.device for weight in network.parameters()), otherwise)


def to_device(device: torch.device, values: Tensor) -> Tensor:
    """The values on this device, without waiting for the copy.

    Only a copy to main memory is waited for, because it could be read before it has arrived.
    """
    return values.to(device, non_blocking=device.type != "cpu")
