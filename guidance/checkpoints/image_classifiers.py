"""Loads a classifier of clean images from a file or a folder, without downloads or foreign code.

Folders: image-classification models of Hugging Face and timm. Files: torchvision's state dicts, and
this pack's classifiers that were trained on clean images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..classifiers.image import ImageClassifier
from ..classifiers.preprocessing import Preprocessing
from .checkpoint import (
    METADATA_KEY,
    Checkpoint,
    CheckpointError,
    Description,
    dtype_named,
    read_checkpoint,
    read_tensors,
)
from .opened import OpenedClassifier


def open_image_classifier(path: str | Path) -> OpenedClassifier:
    """The classifier in a file, or in a folder with a config.json.

    Raises CheckpointError with one sentence if it is missing, damaged, unsafe, not an image
    classifier, of an unknown architecture or not for RGB.
    """
    path = Path(path)
    # ordinary tensors, also when called in inference mode: gradients flow through them
    with torch.inference_mode(False):
        opened = _of_folder(path) if path.is_dir() else _of_file(path)
        opened.network.eval().requires_grad_(False)
    return opened


def load_image_classifier(
    path: str | Path,
    *,
    gradient: str = "cheap",
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
) -> ImageClassifier:
    """A classifier of clean images; path and errors as for `open_image_classifier`.

    gradient is "cheap" or "exact" (see `ImageClassifier`); dtype is "fp32", "bf16", "fp16", or
    "auto": as stored, and fp32 on a CPU.
    """
    on_cpu = torch.device(device).type == "cpu"
    opened = open_image_classifier(path)
    stored = torch.float32 if on_cpu else opened.dtype
    opened.network.to(device, stored if dtype == "auto" else dtype_named(dtype))
    return opened.classifier(gradient)


def classes_of_image_classifier(path: str | Path) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes, and their names or None; a folder's weights are not read."""
    path = Path(path)
    if path.is_dir():
        from .hugging_face import classes_of_folder

        return classes_of_folder(path)
    opened = open_image_classifier(path)
    return opened.num_classes, opened.labels


def _of_folder(path: Path) -> OpenedClassifier:
    from .hugging_face import open_folder

    return open_folder(path)


def _of_file(path: Path) -> OpenedClassifier:
    from .torchvision import open_state_dict

    tensors, metadata = read_tensors(path)
    if METADATA_KEY in metadata:
        return _of_pack(read_checkpoint(path, "classifier"))
    return open_state_dict(path, tensors)


class ZeroNoiseWrapper(nn.Module):
    """A network for noisy images, evaluated at zero noise."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Clean x (B, C, H, W) -> logits (B, classes)."""
        return self.network(x, x.new_zeros(len(x)))


def _of_pack(checkpoint: Checkpoint) -> OpenedClassifier:
    about = checkpoint.description
    _check_clean(checkpoint.path.name, about)
    network = checkpoint.network()
    side = about.layout.image_size
    return OpenedClassifier(
        network=ZeroNoiseWrapper(network),
        num_classes=network.layout.class_count,
        preprocessing=Preprocessing(resize=(side, side) if side else None),
        labels=about.labels,
    )


def _check_clean(name: str, about: Description) -> None:
    if not about.training.get("clean"):
        raise CheckpointError(
            f"{name} was trained on noisy images; load it with Load Noisy Classifier instead."
        )
    if about.layout.in_channels != 3 or about.space not in (None, "rgb"):
        raise CheckpointError(
            f"{name} reads {about.layout.in_channels}-channel images of the space {about.space}; "
            "only RGB images are supported here."
        )
