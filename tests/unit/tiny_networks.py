"""Networks small enough for tests, with random weights everywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from guidance import DiffusionModel, NoisyClassifier
from guidance.adm import ClassifierLayout, EncoderUNet, UNet, UNetLayout
from guidance.checkpoints.checkpoint import Description, save_checkpoint
from guidance.classifiers.base import SamplingPoint
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.strength import Strength

SIZE = 8
CLASSES = 3
NAMES = ("cat", "catfish", "zebra")
ENCODER = {
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_levels": (1,),
    "num_head_channels": 32,
    "image_size": SIZE,
}


def classifier_layout(**changes) -> ClassifierLayout:
    """A classifier of 8x8 images in three classes, but for `changes`."""
    return ClassifierLayout(**{**ENCODER, "out_channels": CLASSES, **changes})


def unet_layout(**changes) -> UNetLayout:
    """A diffusion model of three classes and a null class, but for `changes`."""
    classes = {"num_classes": CLASSES + 1, "null_class": CLASSES}
    return UNetLayout(**{**ENCODER, "out_channels": 6, **classes, **changes})


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, also where training would start from zero; frozen, in eval mode."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.eval().requires_grad_(False)


def half_unet(**changes) -> EncoderUNet:
    return randomised(EncoderUNet(classifier_layout(**changes)))


def unet(**changes) -> UNet:
    return randomised(UNet(unet_layout(**changes)))


def diffusion_model(schedule: str = "linear", **changes) -> DiffusionModel:
    return DiffusionModel(unet(**changes), schedule)


def noisy_classifier(schedule: str = "linear", **changes) -> NoisyClassifier:
    network = half_unet(**changes)
    labels = NAMES if network.layout.class_count == CLASSES else None
    return NoisyClassifier(network, schedule, labels)


def write_model(path, network: nn.Module, labels=NAMES, schedule: str = "linear", dtype=None):
    """The network as a file of this pack's own; returns the path."""
    kind = "classifier" if isinstance(network, EncoderUNet) else "diffusion"
    description = Description(
        kind=kind, layout=network.layout, noise_schedule=schedule, labels=labels, space="rgb"
    )
    save_checkpoint(path, network.state_dict(), description, dtype)
    return path


class SmoothClassifier(nn.Module):
    """logits = V tanh(W x + u t / 1000): float64, smooth, and it looks at t."""

    def __init__(self, pixels: int = 3 * SIZE * SIZE, classes: int = CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def weights(*shape: int) -> nn.Parameter:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(values / shape[-1] ** 0.5)

        self.hidden, self.time, self.last = weights(16, pixels), weights(16), weights(classes, 16)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        seen = x.flatten(1) @ self.hidden.T + self.time * t.to(x.dtype)[:, None] / 1000
        return 3 * seen.tanh() @ self.last.T


def images(batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 3, size: int = SIZE):
    """Noise (batch, 3, size, size), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator).to(dtype)


def guidance_term(classifier, x, denoised, sigma, labels, alpha=1.0, scale=1.0, **options):
    """What guidance adds to `denoised` at one point of a run."""
    guide = Guide(classifier, labels, Strength(scale=scale, **options))
    return guide.term(SamplingPoint.at(x, denoised, sigma, alpha))
