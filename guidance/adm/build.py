"""Builds the network of a layout."""

from __future__ import annotations

from typing import Any

import torch

from .encoder_unet import EncoderUNet
from .layout import ADMLayout, ClassifierLayout
from .unet import UNet


def build_network(layout: ADMLayout, device: torch.device | str | None = None) -> Any:
    """An EncoderUNet for a ClassifierLayout, a UNet for a UNetLayout."""
    network = EncoderUNet if isinstance(layout, ClassifierLayout) else UNet
    return network(layout, device=device)  # type: ignore[arg-type]


def shapes_of(network: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a network, by its name in the state dict."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}
