"""A VAE with gradients: decodes a model's latents for a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.sd
import torch
from comfy.taesd.taesd import TAESD
from torch import Tensor

from ...guidance.core.autograd import use_ordinary_weights
from ...guidance.core.host_copy import device_of
from .autograd import use_ordinary_attributes
from .delegate import not_streamed
from .patcher import AllOrNothingPatcher


@dataclass(frozen=True)
class PlacedVAE:
    """A VAE with a differentiable decoder, and its patcher.

    dimensions: of its latents, 2 for images and 3 for video. slope, offset: from the decoder's
    output to pixels in [-1, 1].
    """

    patcher: Any
    channels: int
    dimensions: int
    dtype: torch.dtype
    slope: float
    offset: float

    @classmethod
    def of(cls, vae: comfy.sd.VAE) -> PlacedVAE:
        """Raises ValueError for a VAE that does not decode images or has streamed weights."""
        vae.throw_exception_if_invalid()
        if vae.latent_dim not in (2, 3) or vae.output_channels != 3:
            kind = "sound" if vae.latent_dim == 1 else "no RGB images"
            raise ValueError(
                f"vae decodes {kind}; an image classifier needs the VAE of an image model."
            )
        patcher = vae.patcher
        whole = AllOrNothingPatcher(
            _network(vae), load_device=patcher.load_device, offload_device=patcher.offload_device
        )
        # core maps the output to 0..1: (v + 1) / 2 for most VAEs, the identity for some
        low, high = vae.process_output(torch.tensor([0.0, 0.5])).tolist()
        slope = (high - low) / 0.5
        kind = vae.latent_channels, vae.latent_dim, vae.vae_dtype
        return cls(whole, *kind, slope=2 * slope, offset=2 * low - 1)

    def decode(self, network: Any, model: Any, x0: Tensor) -> Tensor:
        """From a base model's x0 (B, C, H, W) or (B, C, 1, H, W) to RGB in [-1, 1].

        network: the placed VAE.
        """
        use_ordinary_weights(network)
        use_ordinary_attributes(model.latent_format)
        latents = model.process_latent_out(x0).to(device_of(network, x0.device), self.dtype)
        if latents.ndim == 5 and self.dimensions == 2:  # as core decodes them
            latents = latents.squeeze(2)
        pixels = network.decode(latents)
        pixels = pixels.squeeze(2) if pixels.ndim == 5 else pixels  # of a video VAE: one frame
        return pixels * self.slope + self.offset


def _network(vae: comfy.sd.VAE) -> torch.nn.Module:
    """The VAE's network, or a copy whose weights are not streamed.

    Raises ValueError if there can be none.
    """
    found = not_streamed(vae.patcher)
    if found is not None:
        return found.model
    network = vae.first_stage_model
    if isinstance(network, TAESD):  # core loads it from two files, and so makes no delegate of it
        copy = TAESD(latent_channels=vae.latent_channels)
        copy.load_state_dict(network.state_dict())
        return copy.eval().to(vae.vae_dtype)
    raise ValueError(
        "vae has weights that are streamed, so gradients cannot pass through it; load it with "
        "core's Load VAE, or start ComfyUI with --disable-dynamic-vram."
    )
