"""Builds the network of a layout."""

from __future__ import annotations

from typing import Any

from .encoder_unet import EncoderUNet
from .layout import ADMLayout, ClassifierLayout
from .unet import UNet


def build_network(layout: ADMLayout, operations: Any = None, device: Any = None) -> Any:
    """An EncoderUNet for a ClassifierLayout, a UNet for a UNetLayout; arguments as for these."""
    network = EncoderUNet if isinstance(layout, ClassifierLayout) else UNet
    return network(layout, operations, device=device)  # type: ignore[arg-type]


def shapes_of(network: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a network, by its name in the state dict."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}
