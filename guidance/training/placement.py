"""Where a training has its data, and where it draws the random numbers of a step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.host_copy import WITH_EVENTS, to_device
from .data import LabelledImages

CPU = torch.device("cpu")
SHARE = 0.5  # of a device's free memory that the data may take


def place_of_draws(device: str | torch.device) -> torch.device:
    """The device itself if it computes while the host goes on, else the CPU."""
    device = torch.device(device)
    return device if device.type in WITH_EVENTS else CPU


class PlacedImages:
    """Labelled images, of which batches are taken on a device.

    They are put there once if they take at most half of its free memory. Otherwise each batch is
    copied from main memory, pixels as bytes.
    """

    def __init__(self, data: LabelledImages, device: torch.device):
        self.device = device
        if device.type != CPU.type and _size(data) <= SHARE * free_memory(device):
            data = replace(data, images=data.images.to(device), labels=data.labels.to(device))
        self.data = data

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """x0 (B, C, H, W) and labels (B,) at these indices (B,), which are on the CPU."""
        chosen = self.data.pick(_sent(index, self.data.images.device))
        images, labels = (_sent(one, self.device) for one in (chosen.images, chosen.labels))
        return replace(chosen, images=images, labels=labels).x0(slice(None)), labels


def free_memory(device: torch.device) -> int:
    """Free bytes of a device; 0 if torch cannot tell."""
    try:
        return int(getattr(torch, device.type).mem_get_info(device)[0])
    except (AttributeError, RuntimeError):
        return 0


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device, without waiting for the copy.

    CUDA reads pinned memory by itself; for other memory the driver may wait for earlier work.
    """
    if device.type == "cuda" and values.device.type == CPU.type:
        values = values.pin_memory()
    return to_device(device, values)


def _size(data: LabelledImages) -> int:
    return sum(one.numel() * one.element_size() for one in (data.images, data.labels))
