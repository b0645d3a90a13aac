"""A latent space of digits, and a diffusion model in it, small enough to be trained in a test.

The autoencoder stands in for Stable Diffusion 1.5's inside of ComfyUI's own VAE: four channels,
1 / 0.18215 as large as what the model works on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SHRINK = 4  # pixels to a latent's side
CHANNELS = 4
SCALE_FACTOR = 0.18215


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x):
        return x + self.layers(x)


class Autoencoder(nn.Module):
    """Pixels (B, 3, H, W) in -1..1 to latents (B, 4, H / 4, W / 4) and back, as core calls it."""

    def __init__(self, width=64):
        super().__init__()
        # linear: a space that is as easy to learn in as pixels are
        self.encoder = nn.Conv2d(3, CHANNELS, SHRINK, SHRINK)
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, width, 3, padding=1),
            *(Block(width) for _ in range(4)),
            nn.Conv2d(width, 3 * SHRINK**2, 3, padding=1),
            nn.PixelShuffle(SHRINK),
        )
        self.register_buffer("gain", torch.ones(()))

    def encode(self, x):
        return self.encoder(x) * self.gain

    def decode(self, z):
        return self.decoder(z / self.gain)


def trained_autoencoder(x0, steps, batch=64):
    """An Autoencoder of x0 (N, 3, H, W), its latents as large as Stable Diffusion 1.5's."""
    chance = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Autoencoder()
    optimizer = torch.optim.AdamW(network.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        x = x0[torch.randint(len(x0), (batch,), generator=chance)]
        z = network.encode(x)
        # neighbours of a latent are to be decoded alike, and latents to stay near 0
        near = z + 0.15 * torch.randn(z.shape, generator=chance)
        loss = F.mse_loss(network.decode(near), x) + 1e-2 * (z**2 - 1).clamp(min=0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    network.eval().requires_grad_(False)
    network.gain /= SCALE_FACTOR * network.encode(x0[:1000]).std()
    return network


def core_vae(network):
    """The core VAE around an Autoencoder."""
    import comfy.model_patcher
    import comfy.sd

    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    cpu = torch.device("cpu")
    vae.first_stage_model = network
    vae.patcher = comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)
    vae.latent_channels, vae.output_channels = CHANNELS, 3
    vae.downscale_ratio = vae.upscale_ratio = SHRINK
    vae.process_input = lambda image: image * 2.0 - 1.0
    vae.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
    return vae


def core_model(network, schedule, adapter):
    """The core MODEL around an ADM U-Net of latents in Stable Diffusion 1.5's format."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    class Config(comfy.supported_models_base.BASE):
        latent_format = comfy.latent_formats.SD15
        unet_extra_config = {}

    config = Config({"layout": network.layout})
    config.set_inference_dtype(torch.float32, None)

    def unet(layout, **_):
        return adapter.ComfyUNet(layout, torch.float32, None)

    eps = comfy.model_base.ModelType.EPS
    model = comfy.model_base.BaseModel(config, eps, unet_model=unet)
    model.diffusion_model.load_state_dict(network.state_dict())
    model.model_sampling = adapter.ADMSampling(schedule)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
