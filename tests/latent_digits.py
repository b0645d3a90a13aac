"""A latent space of digits, and a diffusion model that draws in it: the shipped one, wrapped.

The autoencoder halves the sides, mixes the twelve channels that come of it, and divides by SDXL's
scale factor; what it loses is nothing, so images are as good as the shipped model's. It stands in
for a VAE inside of ComfyUI's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SHRINK = 2  # pixels to a latent's side
CHANNELS = 3 * SHRINK**2
SCALE_FACTOR = 0.13025


def mixed(x0):
    """Pixels (B, 3, H, W) in -1..1 as the sampler carries them, (B, 12, H / 2, W / 2)."""
    return torch.einsum("ij,bjhw->bihw", _mixing(x0), F.pixel_unshuffle(x0, SHRINK))


def unmixed(x0):
    """Its inverse."""
    return F.pixel_shuffle(torch.einsum("ji,bjhw->bihw", _mixing(x0), x0), SHRINK)


def _mixing(like):
    """An orthogonal matrix."""
    chance = torch.Generator().manual_seed(0)
    matrix, _ = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=chance))
    return matrix.to(like)


class Autoencoder(nn.Module):
    """Pixels to latents and back, as core calls it."""

    def encode(self, x):
        return mixed(x) / SCALE_FACTOR

    def decode(self, z):
        return unmixed(z * SCALE_FACTOR)


class LatentUNet(nn.Module):
    """The U-Net of a pixel model, asked for no class, on latents."""

    def __init__(self, network):
        super().__init__()
        self.network, self.dtype = network, torch.float32

    def forward(self, x, timesteps, **_):
        nothing = torch.full((len(x),), self.network.layout.null_class)
        return mixed(self.network(unmixed(x), timesteps, y=nothing))


def core_vae():
    """The core VAE around the Autoencoder."""
    import comfy.model_patcher
    import comfy.sd

    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    cpu = torch.device("cpu")
    vae.first_stage_model = network = Autoencoder()
    vae.patcher = comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)
    vae.latent_channels, vae.output_channels = CHANNELS, 3
    vae.downscale_ratio = vae.upscale_ratio = SHRINK
    vae.process_input = lambda image: image * 2.0 - 1.0
    vae.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
    return vae


def core_model(pixel_model):
    """The core MODEL that draws latents, of one that draws pixels."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    class Digits(comfy.latent_formats.SDXL):
        latent_channels = CHANNELS

    class Config(comfy.supported_models_base.BASE):
        latent_format = Digits
        unet_extra_config = {}

    config = Config({"network": pixel_model.model.diffusion_model})
    config.set_inference_dtype(torch.float32, None)

    def unet(network, **_):
        return LatentUNet(network)

    eps = comfy.model_base.ModelType.EPS
    model = comfy.model_base.BaseModel(config, eps, unet_model=unet)
    model.model_sampling = pixel_model.model.model_sampling
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
