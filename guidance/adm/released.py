"""The models OpenAI released with guided-diffusion (July 2021), as its README describes them.

Source: the flags in README.md of github.com/openai/guided-diffusion, and its scripts. Layouts are
derived from the flags, so that each fact is written once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

from ..core.labels import IMAGENET_CLASSES
from .layout import ADMLayout, ClassifierLayout, UNetLayout

MULTIPLIERS = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
UPSAMPLER_MULTIPLIER = MULTIPLIERS[256]  # also at 512


@dataclass(frozen=True)
class Released:
    """One file: its name, the flags that differ from others of its kind, its size and classes.

    `megabytes` are 10^6 bytes of fp32 parameters. `classifier_scale` is from the README, for a
    guided diffusion model.
    """

    file: str
    flags: str
    megabytes: int
    classifier_scale: float | None = None
    images: str = "ImageNet"

    @property
    def kind(self) -> str:
        """ "classifier", "diffusion" or "upsampler"."""
        if "classifier_depth" in self._options:
            return "classifier"
        return "upsampler" if "large_size" in self._options else "diffusion"

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        return int(self._options.get("large_size") or self._options["image_size"])

    @property
    def noise_schedule(self) -> str:
        """ "linear" or "cosine"."""
        return self._options["noise_schedule"]

    @cached_property
    def layout(self) -> ADMLayout:
        """The layout from the flags, without dropout, which is only for training."""
        return self._classifier() if self.kind == "classifier" else self._unet()

    @cached_property
    def _options(self) -> dict[str, str]:
        words = self.flags.split()
        return dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))

    def _unet(self) -> UNetLayout:
        options, upsampler = self._options, self.kind == "upsampler"
        return UNetLayout(
            in_channels=6 if upsampler else 3,
            model_channels=int(options["num_channels"]),
            out_channels=6,
            num_res_blocks=int(options["num_res_blocks"]),
            channel_mult=UPSAMPLER_MULTIPLIER if upsampler else MULTIPLIERS[self.image_size],
            attention_levels=self._levels(options["attention_resolutions"]),
            image_size=self.image_size,
            num_heads=int(options.get("num_heads", 1)),
            num_head_channels=None if "num_heads" in options else int(options["num_head_channels"]),
            new_attention_order=options.get("use_new_attention_order") == "True",
            num_classes=IMAGENET_CLASSES if options["class_cond"] == "True" else None,
        )

    def _classifier(self) -> ClassifierLayout:
        return ClassifierLayout(
            model_channels=128,
            out_channels=IMAGENET_CLASSES,
            num_res_blocks=int(self._options["classifier_depth"]),
            channel_mult=MULTIPLIERS[self.image_size],
            attention_levels=self._levels("32,16,8"),
            image_size=self.image_size,
            num_head_channels=64,
            pool="attention",
        )

    def _levels(self, resolutions: str) -> tuple[int, ...]:
        """The number of halvings from the image's side to each of the `resolutions`, "32,16,8"."""
        sides = map(int, resolutions.split(","))
        return tuple((self.image_size // side).bit_length() - 1 for side in sides)


_CLASSIFIER = "--image_size {} --noise_schedule {} --classifier_depth {}"
_DIFFUSION = (
    "--image_size {} --class_cond {} --noise_schedule linear --num_channels 256 --num_res_blocks 2 "
    "{} --attention_resolutions 32,16,8"
)
_HEADS = "--num_head_channels 64"
_UNCONDITIONAL = _DIFFUSION.format(256, False, _HEADS)
_UPSAMPLER = (
    "--large_size {} --small_size {} --class_cond True --noise_schedule linear --num_channels 192 "
    "--num_res_blocks 2 {} --attention_resolutions {}"
)
_SMALLEST = (
    "--image_size 64 --class_cond True --noise_schedule cosine --num_channels 192 "
    "--num_res_blocks 3 --num_head_channels 64 --attention_resolutions 32,16,8 "
    "--use_new_attention_order True --dropout 0.1"
)
RELEASED = (
    Released("64x64_classifier.pt", _CLASSIFIER.format(64, "cosine", 4), 262),
    Released("128x128_classifier.pt", _CLASSIFIER.format(128, "linear", 2), 170),
    Released("256x256_classifier.pt", _CLASSIFIER.format(256, "linear", 2), 216),
    Released("512x512_classifier.pt", _CLASSIFIER.format(512, "linear", 2), 218),
    Released("64x64_diffusion.pt", _SMALLEST, 1184, 1.0),
    Released("128x128_diffusion.pt", _DIFFUSION.format(128, True, "--num_heads 4"), 1686, 0.5),
    Released("256x256_diffusion.pt", _DIFFUSION.format(256, True, _HEADS), 2215, 1.0),
    Released("256x256_diffusion_uncond.pt", _UNCONDITIONAL, 2211, 10.0),
    Released("512x512_diffusion.pt", _DIFFUSION.format(512, True, _HEADS), 2236, 4.0),
    Released("64_256_upsampler.pt", _UPSAMPLER.format(256, 64, "--num_heads 4", "32,16,8"), 1247),
    Released("128_512_upsampler.pt", _UPSAMPLER.format(512, 128, _HEADS, "32,16"), 1235),
    Released("lsun_bedroom.pt", f"{_UNCONDITIONAL} --dropout 0.1", 2211, images="LSUN bedroom"),
    Released("lsun_cat.pt", f"{_UNCONDITIONAL} --dropout 0.1", 2211, images="LSUN cat"),
    Released("lsun_horse.pt", f"{_UNCONDITIONAL} --dropout 0.1", 2211, images="LSUN horse"),
    Released(
        "lsun_horse_nodropout.pt", f"{_UNCONDITIONAL} --dropout 0.0", 2211, images="LSUN horse"
    ),
)


def released_classes(file: str) -> int | None:
    """The number of classes of the released model of this name, in any folder; else None.

    0: it is not conditional.
    """
    name = PurePath(file.replace("\\", "/")).name
    found = next((one for one in RELEASED if one.file == name), None)
    return None if found is None else found.layout.class_count or 0


def released_like(layout: ADMLayout) -> Released | None:
    """The first released model with the same tensors, except for the number of classes.

    Models that only differ in their classes agree in everything that cannot be read from tensors.
    This is also true for a model that was fine-tuned on other classes.
    """
    wanted = _signature(layout)
    return next((one for one in RELEASED if _signature(one.layout) == wanted), None)


def _signature(layout: ADMLayout) -> ADMLayout:
    """The part of the layout that tensors determine, without the classes."""
    undetected: dict[str, Any] = {
        "num_heads": 1,
        "num_head_channels": None,
        "new_attention_order": False,
        "dropout": 0.0,
    }
    if isinstance(layout, UNetLayout):
        return replace(layout, **undetected, image_size=None, num_classes=None, null_class=None)
    return replace(layout, **undetected, out_channels=IMAGENET_CLASSES)
