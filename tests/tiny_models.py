"""Small random models of the real layouts, written as files that the loaders then read."""

from __future__ import annotations

import torch

from guidance.adm import ClassifierLayout, EncoderUNet, UNet, UNetLayout
from guidance.checkpoints.checkpoint import Description, save_checkpoint

CLASSES = 4
SIZE = 16


def randomised(network, seed: int, std: float):
    """Random weights everywhere, also where training would start from zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.normal_(generator=generator).mul_(std)
    return network


def write_unet(
    path, *, classes=CLASSES + 1, null_class=CLASSES, schedule="linear", seed=0, dtype=None, **more
):
    """A U-Net file; classes None makes it unconditional. `more` changes the layout."""
    layout = {"model_channels": 32, "out_channels": 6, "num_res_blocks": 1}
    layout |= {"channel_mult": (1, 2), "attention_levels": (1,), "num_head_channels": 32}
    layout |= {"image_size": SIZE, "num_classes": classes}
    layout |= {"null_class": null_class if classes else None}
    layout = UNetLayout(**layout | more)
    about = Description(kind="diffusion", layout=layout, noise_schedule=schedule, space="rgb")
    save_checkpoint(path, randomised(UNet(layout), seed, 0.03).state_dict(), about, dtype)


CLASSIFIER = {
    "model_channels": 32,
    "out_channels": CLASSES,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_levels": (1,),
    "num_head_channels": 32,
    "image_size": SIZE,
}


def write_classifier(
    path, *, classes=CLASSES, pool="attention", channels=3, seed=1, labels=None, dtype=None, **more
):
    """A classifier file. `more` changes the layout."""
    layout = CLASSIFIER | {"in_channels": channels, "out_channels": classes, "pool": pool}
    layout = ClassifierLayout(**layout | more)
    space = "rgb" if channels == 3 else None
    about = Description(
        kind="classifier", layout=layout, noise_schedule="linear", labels=labels, space=space
    )
    network = randomised(EncoderUNet(layout), seed, 0.2)
    save_checkpoint(path, network.state_dict(), about, dtype)


def write_released_unet(path, seed=0):
    """An unconditional .pt without a description, as OpenAI's: its layout is in its tensors."""
    layout = UNetLayout(
        model_channels=64,
        out_channels=6,
        num_res_blocks=1,
        channel_mult=(1, 1),
        attention_levels=(0,),
        image_size=32,
    )
    torch.save(randomised(UNet(layout), seed, 0.03).state_dict(), path)


def write_released_classifier(path, seed=1):
    """A classifier's .pt without a description, as OpenAI's."""
    layout = ClassifierLayout(
        model_channels=64,
        out_channels=CLASSES,
        num_res_blocks=1,
        channel_mult=(1, 1),
        attention_levels=(0,),
        image_size=32,
    )
    torch.save(randomised(EncoderUNet(layout), seed, 0.1).state_dict(), path)
