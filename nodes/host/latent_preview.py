"""Predicted images as RGB, without a VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...guidance.core.host_copy import to_device
from .model_info import PIXELS, space_of


def latent_preview(patcher: Any, x0: Tensor) -> Tensor | None:
    """A MODEL's x0 (B, C, H, W) or (B, C, 1, H, W) as images (B, 1 or 3, h, w) in [-1, 1].

    Pixels stay as they are. Latents are mapped by core's own factors of their format, as in core's
    fast previews; None for a format without factors.
    """
    if space_of(patcher) == PIXELS:
        return x0 if x0.ndim == 4 and x0.shape[1] in (1, 3) else None
    latent_format = patcher.get_model_object("latent_format")
    factors = latent_format.latent_rgb_factors
    if factors is None:
        return None
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    x0 = x0 if reshape is None else reshape(x0)
    x0 = x0.squeeze(2).float() if x0.ndim == 5 else x0.float()
    bias = getattr(latent_format, "latent_rgb_factors_bias", None) or (0.0, 0.0, 0.0)
    weights, bias = (to_device(x0.device, torch.tensor(values)) for values in (factors, bias))
    return torch.einsum("bchw,cr->brhw", x0, weights) + bias.view(-1, 1, 1)
