"""Preprocessing of images as preprocessor_config.json describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..classifiers.preprocessing import HALF, Preprocessing
from .checkpoint import CheckpointError
from .folder import PREPROCESSOR, refused_as

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIDE = 224
# PIL's numbers: nearest, lanczos (not in torch; bicubic is closest), bilinear, bicubic
RESAMPLING = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
# These resize in a special way.
UNKNOWN_PROCESSORS = ("Perceiver", "PoolFormer", "Levit")


def processing(folder: Path, config: dict[str, Any], given: dict[str, Any] | None) -> Preprocessing:
    """From preprocessor_config.json; without it, the model's size and ImageNet's mean and std."""
    if given is None:
        side = config.get("image_size", DEFAULT_SIDE)
        size = (int(side[0]), int(side[1])) if isinstance(side, list) else (int(side), int(side))
        return Preprocessing(resize=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    if kind.startswith(UNKNOWN_PROCESSORS):
        raise CheckpointError(
            f"{folder.name} prepares its images with {kind}, which this pack cannot do; use a "
            "model of another kind."
        )
    with refused_as(f"{PREPROCESSOR} in {folder.name} cannot be used"):
        resize, crop = _sizes(given)
        mean, std = _normalisation(kind, given)
        return Preprocessing(
            resize=resize,
            crop=crop,
            mean=mean,
            std=std,
            interpolation=RESAMPLING.get(int(given.get("resample", 2)), "bilinear"),
            bgr=bool(given.get("do_flip_channel_order", False)),
            crop_down=True,
        )


def _sizes(given: dict[str, Any]) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """resize and crop of a `Preprocessing`."""
    size, percent = given.get("size", DEFAULT_SIDE), given.get("crop_pct")
    cropped = bool(given.get("do_center_crop", False))
    if isinstance(size, int):  # written by older versions
        short = "do_center_crop" in given or percent is not None
        size = {"shortest_edge": size} if short else {"height": size, "width": size}
    resize = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    if not given.get("do_resize", True):
        resize = None
    elif percent is not None and isinstance(resize, int):
        # ConvNeXt: small images are cropped, large ones are resized without crop
        if resize >= 384:
            return (resize, resize), None
        return int(resize / percent), (resize, resize)
    if not cropped:
        return resize, None
    crop = given.get("crop_size", DEFAULT_SIDE)
    return resize, (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])


def _normalisation(kind: str, given: dict[str, Any]) -> tuple[tuple[float, ...], ...]:
    """mean and std for pixels in [0, 1], including the rescaling before them."""
    mean, std = tuple(given.get("image_mean") or HALF), tuple(given.get("image_std") or HALF)
    # MobileViT's processor does not normalise, and its config does not say so
    if not given.get("do_normalize", not kind.startswith("MobileViT")):
        mean, std = (0.0,) * 3, (1.0,) * 3
    elif kind.startswith("EfficientNet") and given.get("include_top", True):
        std = tuple(value**2 for value in std)  # it divides twice
    factor = 255 * given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 255
    shift = 1 if given.get("rescale_offset", False) else 0
    return tuple((m + shift) / factor for m in mean), tuple(s / factor for s in std)
