"""Image classifiers in Hugging Face folders: config.json, .safetensors, preprocessor_config.json.

They are loaded by transformers, or by timm if the config has a timm architecture. Nothing is
downloaded, and code in a folder is never run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..classifiers.image import SCORE_LABELS, ImageClassifier
from ..classifiers.preprocessing import INTERPOLATIONS, Preprocessing
from ..core.bounded_read import quoted
from .checkpoint import CheckpointError, read_tensors
from .folder import (
    CONFIG,
    TEXT_AND_IMAGE,
    WEIGHTS,
    ModelFolder,
    check_justified,
    pretrained,
    read_folder,
    read_json,
    refuse_channels,
    refuse_huge,
    refused_as,
)
from .image_processor import processing

# Keys that a timm config may not set: files and addresses.
TIMM_REFUSED = ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg")


def open_folder(folder: Path) -> ImageClassifier:
    """The classifier in the folder; raises CheckpointError with one sentence."""
    about = read_folder(folder)
    with refused_as(f"{CONFIG} in {folder.name} cannot be used"):
        if "architecture" in about.config and "model_type" not in about.config:
            network, classes, preprocessing = _of_timm(about)
        else:
            network, classes = _of_transformers(about)
            preprocessing = processing(folder, about.config, about.preprocessor)
        labels = _labels(about.config)
        named = labels is not None and len(labels) == classes
        return ImageClassifier.of_outputs(
            network, preprocessing, classes, labels if named else None
        )


def classes_of_folder(folder: Path) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes and their names from the config; 0 and None if missing."""
    with refused_as(f"{CONFIG} in {folder.name} cannot be used"):
        config = read_json(folder, CONFIG) or {}
        refuse_huge(config)
        labels = _labels(config)
        count = config.get("num_classes") or len(labels or config.get("id2label") or ())
        if count == 1:
            return 1, SCORE_LABELS
        return (count if isinstance(count, int) else 0), labels


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """transformers' id2label in order, else timm's label_names.

    None if both are missing, or there are only placeholders (LABEL_0, ...).
    """
    named = config.get("id2label")
    if isinstance(named, dict) and all(key.isdecimal() and len(key) < 10 for key in named):
        names = [str(named[key]) for key in sorted(named, key=int)]
        if names != [f"LABEL_{index}" for index in range(len(names))]:
            return tuple(names)
    given = config.get("pretrained_cfg") or {}
    listed = config.get("label_names") or given.get("label_names")
    return tuple(map(str, listed)) if isinstance(listed, list) else None


# --- transformers ----------------------------------------------------------------------------


class LogitsWrapper(nn.Module):
    """A transformers model as an ordinary network."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W), the output of its image processor -> logits (B, classes)."""
        return self.model(pixel_values=x).logits


def _of_transformers(about: ModelFolder) -> tuple[nn.Module, int]:
    """The network, and the number of its classes."""
    name, architectures = about.path.name, about.architectures
    if TEXT_AND_IMAGE & set(architectures):
        raise CheckpointError(
            f"{name} compares images with words ({architectures[0]}) and has no classes of its "
            "own; load it with Zero-Shot Classifier (command line: --classes), which takes words."
        )
    if not any("ForImageClassification" in one for one in architectures):
        raise CheckpointError(
            f"{name} is not an image classifier (architectures in its config: "
            f"{', '.join(architectures)[:80] or 'none'}); use a model that is one."
        )
    refuse_channels(name, about.config)
    loader = "AutoModelForImageClassification"
    model = pretrained(about.path, about.weights, loader, "an image classifier")
    return LogitsWrapper(model), int(model.config.num_labels)


# --- timm ------------------------------------------------------------------------------------


def _of_timm(about: ModelFolder) -> tuple[nn.Module, int, Preprocessing]:
    """The network, the number of its classes, and its preprocessing."""
    folder, config = about.path, about.config
    try:
        import timm
    except Exception as error:
        raise CheckpointError(
            f"{folder.name} is a model of timm ({quoted(config['architecture'])}), which is not "
            "installed here; install it (pip install timm)."
        ) from error
    name, given = config["architecture"], config.get("pretrained_cfg") or {}
    arguments = config.get("model_args") or {}
    # a bad config can make timm raise any error
    with refused_as(f"{folder.name} cannot be read as an image classifier of timm", Exception):
        if not timm.is_model(name) or any(key in arguments for key in TIMM_REFUSED):
            raise ValueError(f"timm has no architecture {quoted(name)} with these arguments")
        classes = int(config.get("num_classes", given.get("num_classes", 1000)))
        with torch.device("meta"):
            described = timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
        check_justified(described, about.weights)
        model = timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
        tensors, _ = read_tensors(folder / WEIGHTS)
        model.load_state_dict(tensors, strict=True)
        data = timm.data.resolve_data_config(pretrained_cfg=given)
        return model, classes, _timm_processing(data)


def _timm_processing(data: dict[str, Any]) -> Preprocessing:
    """timm's evaluation transform: resize the shorter side to size / crop_pct, then center crop."""
    channels, height, width = data["input_size"]
    if channels != 3:
        raise ValueError(f"it reads {channels}-channel images, and RGB images are needed")
    short = math.floor(min(height, width) / data["crop_pct"])
    squeezed = data.get("crop_mode") == "squash"
    kind = data["interpolation"]
    return Preprocessing(
        resize=(short, short) if squeezed else short,
        crop=(height, width),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=kind if kind in INTERPOLATIONS else "bicubic",
    )
