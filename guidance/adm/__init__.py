"""ADM networks (Dhariwal & Nichol 2021), state-dict compatible with OpenAI's checkpoints."""

from .encoder_unet import EncoderUNet
from .layout import ADMLayout, ClassifierLayout, UNetLayout
from .unet import UNet

__all__ = ["ADMLayout", "ClassifierLayout", "EncoderUNet", "UNet", "UNetLayout"]
