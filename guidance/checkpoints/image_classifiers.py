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
from ..classifiers.looks import NO_LOOKS, Looks
from ..classifiers.preprocessing import Preprocessing
from ..core.autograd import compute_dtype
from .checkpoint import (
    METADATA_KEY,
    CheckpointError,
    check_finite,
    dtype_named,
    read_checkpoint,
    read_tensors,
)
from .hugging_face import classes_of_folder, open_folder
from .torchvision import open_state_dict


def open_image_classifier(
    path: str | Path, gradient: str = "cheap", looks: Looks = NO_LOOKS
) -> ImageClassifier:
    """The classifier in a file, or in a folder with a config.json; frozen, weights as stored.

    gradient is "cheap" or "exact" (see `ImageClassifier`). Raises CheckpointError with one sentence
    if it is missing, damaged, unsafe, not an image classifier, of an unknown architecture or not
    for RGB.
    """
    path = Path(path)
    # ordinary tensors, also when called in inference mode: gradients flow through them
    with torch.inference_mode(False):
        opened = open_folder(path) if path.is_dir() else _of_file(path)
        check_finite(path.name, opened.network.state_dict())
        opened.network.eval().requires_grad_(False)
    return opened.with_gradient(gradient, looks)


def load_image_classifier(
    path: str | Path,
    *,
    gradient: str = "cheap",
    looks: Looks = NO_LOOKS,
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
) -> ImageClassifier:
    """A classifier of clean images; path, gradient and errors as for `open_image_classifier`.

    dtype is "fp32", "bf16", "fp16", or "auto": as stored, and fp32 on a CPU.
    """
    return loaded(open_image_classifier(path, gradient, looks), dtype, device)


def loaded(classifier: ImageClassifier, dtype: str, device: torch.device | str) -> ImageClassifier:
    """The classifier with its network on the device, in the dtype of `load_image_classifier`."""
    on_cpu = torch.device(device).type == "cpu"
    stored = torch.float32 if on_cpu else compute_dtype(classifier.network, torch.empty(0))
    classifier.network.to(device, stored if dtype == "auto" else dtype_named(dtype))
    return classifier


def classes_of_image_classifier(path: str | Path) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes, and their names or None; a folder's weights are not read."""
    path = Path(path)
    if path.is_dir():
        return classes_of_folder(path)
    opened = open_image_classifier(path)
    return opened.num_classes, opened.labels


def _of_file(path: Path) -> ImageClassifier:
    tensors, metadata = read_tensors(path)
    return _of_pack(path) if METADATA_KEY in metadata else open_state_dict(path, tensors)


class ZeroNoiseWrapper(nn.Module):
    """A network for noisy images, evaluated at zero noise."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Clean x (B, C, H, W) -> logits (B, classes)."""
        return self.network(x, x.new_zeros(len(x)))


def _of_pack(path: Path) -> ImageClassifier:
    checkpoint = read_checkpoint(path, "classifier")
    about, layout = checkpoint.description, checkpoint.description.layout
    if not about.training.get("clean"):
        raise CheckpointError(
            f"{path.name} was trained on noisy images; load it with Load Noisy Classifier instead."
        )
    if layout.in_channels != 3 or about.space not in (None, "rgb"):
        raise CheckpointError(
            f"{path.name} reads {layout.in_channels}-channel images of the space {about.space}; "
            "only RGB images are supported here."
        )
    side = layout.image_size
    preprocessing = Preprocessing(resize=(side, side) if side else None)
    network = ZeroNoiseWrapper(checkpoint.network())
    return ImageClassifier(network, preprocessing, layout.class_count, about.labels)
