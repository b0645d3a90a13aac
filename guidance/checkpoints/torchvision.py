"""torchvision's classification models, from their state dicts.

The architecture is the one in the file's name (resnet50-0676ba61.pth) if its tensors fit, else the
first one with the same tensor names and shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adm.build import shapes_of
from ..classifiers.image import ImageClassifier
from ..classifiers.preprocessing import Preprocessing
from ..core.bounded_read import CheckpointError
from ..core.labels import IMAGENET_CLASSES

Shapes = dict[str, tuple[int, ...]]
# A tensor that every model of a family has, to exclude most families without building them.
FAMILIES = {
    ("alexnet", "squeezenet", "vgg"): "features.0.weight",
    ("convnext", "efficientnet", "mobilenet", "swin"): "features.0.0.weight",
    ("densenet",): "features.conv0.weight",
    ("googlenet",): "conv1.conv.weight",
    ("inception",): "Conv2d_1a_3x3.conv.weight",
    ("maxvit",): "stem.0.0.weight",
    ("mnasnet",): "layers.0.weight",
    ("regnet",): "stem.0.weight",
    ("resne", "wide_resnet"): "conv1.weight",
    ("shufflenet",): "conv1.0.weight",
    ("vit",): "class_token",
}
# Their released weights need TensorFlow's normalisation, which torchvision sets with the weights.
TENSORFLOW_INPUT = ("googlenet", "inception_v3")
# Of batch norms; missing in files from before torch 0.4.1, where torch itself adds it.
COUNTER = "num_batches_tracked"


def open_state_dict(path: Path, tensors: dict[str, Tensor]) -> ImageClassifier:
    """The network of the tensors in the file `path`; raises CheckpointError."""
    try:
        import torchvision.models as models
    except Exception as error:  # torchvision is optional, and may be broken
        raise CheckpointError(
            f"{path.name} needs torchvision to be read; install it (pip install torchvision)."
        ) from error
    tensors = {_renamed(key): value for key, value in tensors.items()}
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    for name in _candidates(models.list_models(module=models), path.name, shapes):
        network = _fitting(models.get_model_builder(name), name, shapes, path.name)
        if network is not None:
            network.load_state_dict(tensors, strict=True, assign=True)
            return _opened(network, name, models.get_model_weights(name), path.name)
    raise CheckpointError(
        f"{path.name} is not a classifier of this pack, and its tensors fit none of torchvision's "
        "image classifiers; use a whole state dict of one of them, or the folder of a Hugging Face "
        "model with its config.json."
    )


def _renamed(key: str) -> str:
    """DenseNet's released files use the names of an older torchvision (norm.1 for norm1)."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", key)


def _candidates(names: list[str], file: str, shapes: Shapes) -> Iterator[str]:
    """The architectures that could fit; those in the file's name come first."""

    def possible(name: str) -> bool:
        keys = [key for starts, key in FAMILIES.items() if name.startswith(starts)]
        return all(key in shapes for key in keys)

    named = sorted((name for name in names if file.startswith(name)), key=len, reverse=True)
    others = [name for name in names if name not in named]
    return filter(possible, [*named, *others])


def _fitting(builder: Callable[..., Any], name: str, shapes: Shapes, file: str) -> Any:
    """The network on the meta device if all names and shapes fit, else None."""
    options = _options(name, shapes)
    network = _on_meta(builder, **options)
    head = [key for key in network.state_dict() if key.endswith(".weight")][-1]
    classes = shapes.get(head, (IMAGENET_CLASSES,))[0]
    if classes != IMAGENET_CLASSES:
        network = _on_meta(builder, num_classes=classes, **options)
    wanted = shapes_of(network)
    wrong = {key for key, _ in wanted.items() ^ shapes.items()}
    wrong = {key for key in wrong if key in shapes or not key.endswith(COUNTER)}
    if len(wrong) == 1:
        (key,) = wrong
        _check_channels(wanted.get(key, ()), shapes.get(key, ()), file)
    network.num_classes = classes
    return None if wrong else network


def _check_channels(wanted: tuple[int, ...], found: tuple[int, ...], file: str) -> None:
    """Raises CheckpointError if only the tensor for the image channels does not fit."""
    if len(wanted) == len(found) == 4 and wanted[1] == 3 and wanted[::2] == found[::2]:
        raise CheckpointError(
            f"{file} reads {found[1]}-channel images; use a classifier of RGB images (3 channels)."
        )


def _options(name: str, shapes: Shapes) -> dict[str, Any]:
    if name in TENSORFLOW_INPUT:
        aux = any(key.startswith(("aux", "AuxLogits")) for key in shapes)
        return {"init_weights": False, "aux_logits": aux, "transform_input": True}
    if name.startswith("vit"):
        tokens = shapes.get("encoder.pos_embedding", (1, 197, 0))[1]
        patch = shapes.get("conv_proj.weight", (0, 0, 16, 16))[-1]
        return {"image_size": math.isqrt(max(tokens - 1, 1)) * patch}
    return {}


def _on_meta(builder: Callable[..., Any], **options: Any) -> Any:
    try:
        with torch.device("meta"):
            return builder(weights=None, **options)
    except NotImplementedError:  # RegNet uses tensors to compute its widths
        return builder(weights=None, **options).to("meta")


def _opened(network: Any, name: str, weights: Any, file: str) -> ImageClassifier:
    """With torchvision's metadata of this file's weights, else of the model's first weights."""
    released = list(weights)
    own = [entry for entry in released if Path(entry.url).stem == Path(file).stem]
    entry = (own or released)[0]
    named = network.num_classes == IMAGENET_CLASSES
    preprocessing = _preprocessing(entry.transforms())
    if name.startswith("vit"):
        side = network.image_size
        if preprocessing.crop != (side, side):
            preprocessing = replace(
                preprocessing, resize=side, crop=(side, side), interpolation="bilinear"
            )
    labels = entry.meta["categories"] if named else None
    return ImageClassifier.of_outputs(network, preprocessing, network.num_classes, labels)


def _preprocessing(preset: Any) -> Preprocessing:
    """From torchvision's ImageClassification preset."""
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return Preprocessing(
        resize=resize,
        crop=(crop, crop),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )
