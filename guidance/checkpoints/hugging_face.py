"""Image classifiers in Hugging Face folders: config.json, .safetensors, preprocessor_config.json.

They are loaded by transformers, or by timm if the config has a timm architecture. Nothing is
downloaded, and code in a folder is never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..classifiers.image import ImageClassifier
from ..classifiers.preprocessing import HALF, INTERPOLATIONS, Preprocessing
from ..core.bounded_read import MOST_CLASSES, open_safetensors, parse_json, quoted, read_text
from .checkpoint import CheckpointError, one_line, read_tensors

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
INDEX = "model.safetensors.index.json"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIDE = 224
# PIL's numbers: nearest, lanczos (not in torch; bicubic is closest), bilinear, bicubic
RESAMPLING = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}
# Limits of values for which a network creates one object each, and of any other number.
MOST_LISTED = {"num_labels": MOST_CLASSES, "num_classes": MOST_CLASSES} | dict.fromkeys(
    ("num_hidden_layers", "num_layers", "num_encoder_blocks", "num_stages", "depth", "depths"), 1000
)
MOST_NUMBER = 1 << 31
# What is raised for damaged files, and also for values of another type or size than expected.
DAMAGED = (OSError, SafetensorError)
UNEXPECTED = (*DAMAGED, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
# These resize in a special way.
UNKNOWN_PROCESSORS = ("Perceiver", "PoolFormer", "Levit")
# Keys that a timm config may not set: files and addresses.
TIMM_REFUSED = ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg")


def open_folder(folder: Path) -> ImageClassifier:
    """The classifier in the folder; raises CheckpointError with one sentence."""
    with _refused_as(f"{CONFIG} in {folder.name} cannot be used"):
        config = _read_json(folder, CONFIG)
        if config is None:
            raise CheckpointError(
                f"{folder.name} has no {CONFIG}; use the whole folder of a Hugging Face image "
                "classifier, or a single file of weights."
            )
        preprocessor = _read_json(folder, PREPROCESSOR)
        _refuse_code(folder, config, preprocessor)
        numbers = _check_weights(folder)
        _refuse_huge(config)
        if "architecture" in config and "model_type" not in config:
            network, classes, preprocessing = _of_timm(folder, config, numbers)
        else:
            network, classes = _of_transformers(folder, config, numbers)
            preprocessing = _processing(folder, config, preprocessor)
        labels = _labels(config)
        named = labels is not None and len(labels) == classes
        return ImageClassifier(network, preprocessing, classes, labels if named else None)


@contextmanager
def _refused_as(said: str, errors: Any = UNEXPECTED) -> Iterator[None]:
    """Raises a CheckpointError with these words for any of the errors."""
    try:
        yield
    except CheckpointError:
        raise
    except errors as error:
        raise CheckpointError(f"{said} ({one_line(error)}); download it again.") from error


def classes_of_folder(folder: Path) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes and their names from the config; 0 and None if missing."""
    with _refused_as(f"{CONFIG} in {folder.name} cannot be used"):
        config = _read_json(folder, CONFIG) or {}
        _refuse_huge(config)
        labels = _labels(config)
        count = config.get("num_classes") or len(labels or config.get("id2label") or ())
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


def _read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in a file of the folder; None if there is no such file."""
    path = folder / name
    if not path.is_file():
        return None
    with _refused_as(f"{name} in {folder.name} cannot be read"):
        values = parse_json(read_text(path))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
        return values


def _refuse_huge(config: Any, name: str = CONFIG) -> None:
    """Raises ValueError for too many labels or layers, before they are created."""
    if isinstance(config, dict):
        for key, value in config.items():
            _refuse_huge(value, key)
    elif isinstance(config, list):
        for value in config:
            _refuse_huge(value, name)
    elif isinstance(config, int):
        most = MOST_LISTED.get(name, MOST_NUMBER)
        if not -MOST_NUMBER <= config <= most:
            raise ValueError(f"{quoted(name)} is {config:.3g}, more than {most}")


def _refuse_code(folder: Path, *configs: dict[str, Any] | None) -> None:
    if any("auto_map" in config for config in configs if config):
        raise CheckpointError(
            f"{folder.name} needs code from its folder (auto_map in its config), which is never "
            "run; use a model whose architecture is part of transformers."
        )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder.name} is an adapter of another model; merge both and save them as one model."
        )
    if any("quantization_config" in config for config in configs if config):
        raise CheckpointError(
            f"{folder.name} is quantised, so it has no gradients; use the original."
        )


def _check_weights(folder: Path) -> int:
    """The number of values in the safetensors files; raises CheckpointError if they are damaged."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if not found:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt"))
        has = f"only {others[0]}" if others else "no weights"
        raise CheckpointError(
            f"{folder.name} has {has}, but {WEIGHTS} is needed (reading it runs no code); save the "
            "model again with save_pretrained, or download that file, too."
        )
    index = _read_json(folder, INDEX)
    if WEIGHTS in found:
        parts = [WEIGHTS]
    elif index is not None and isinstance(index.get("weight_map"), dict):
        parts = sorted({str(name) for name in index["weight_map"].values()})
    else:
        raise CheckpointError(
            f"{folder.name} has {', '.join(found[:3])}, but neither {WEIGHTS} nor {INDEX}, so it "
            f"is not known which weights are meant; name them {WEIGHTS}."
        )
    missing = [name for name in parts if name not in found]
    if missing:
        raise CheckpointError(
            f"{folder.name} lacks {quoted(missing[0])}, a part of its weights; download it, too."
        )
    return sum(_numbers_in(folder, name) for name in parts)


def _numbers_in(folder: Path, name: str) -> int:
    with (
        _refused_as(f"{folder.name}/{name} is not a whole safetensors file"),
        open_safetensors(folder / name) as file,
    ):
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


# --- transformers ----------------------------------------------------------------------------


class LogitsWrapper(nn.Module):
    """A transformers model as an ordinary network."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W), the output of its image processor -> logits (B, classes)."""
        return self.model(pixel_values=x).logits


def _of_transformers(folder: Path, config: dict[str, Any], numbers: int) -> tuple[nn.Module, int]:
    """The network, and the number of its classes."""
    architectures = config.get("architectures") or ()
    if not any("ForImageClassification" in str(name) for name in architectures):
        raise CheckpointError(
            f"{folder.name} is not an image classifier (architectures in its config: "
            f"{', '.join(map(str, architectures))[:80] or 'none'}); use a model that is one."
        )
    channels = config.get("num_channels", 3)
    if channels != 3:
        raise CheckpointError(
            f"{folder.name} reads {channels}-channel images; use a classifier of RGB images."
        )
    model = _pretrained(folder, numbers)
    return LogitsWrapper(model), int(model.config.num_labels)


def _pretrained(folder: Path, numbers: int) -> Any:
    """Loads the folder with transformers, offline and strictly."""
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except Exception as error:  # a broken installation must not stop the start
        raise CheckpointError(
            f"{folder.name} needs transformers to be read; install it (pip install transformers)."
        ) from error
    safely = {"local_files_only": True, "trust_remote_code": False}
    # a bad config can make transformers raise any error
    with _refused_as(
        f"{folder.name} cannot be read as an image classifier of transformers", Exception
    ):
        config = AutoConfig.from_pretrained(str(folder), **safely)
        with torch.device("meta"):
            described = AutoModelForImageClassification.from_config(config)
        _check_justified(described, numbers)
        model, info = AutoModelForImageClassification.from_pretrained(
            str(folder), config=config, use_safetensors=True, output_loading_info=True, **safely
        )
        # extra tensors (such as a pre-training head) are ignored, as in transformers
        lost = [*info["missing_keys"], *info["mismatched_keys"]]
        if lost:
            raise ValueError(f"{len(lost)} tensors are missing or do not fit, {lost[0]} among them")
        return model


def _check_justified(described: nn.Module, numbers: int) -> None:
    """Raises ValueError if a network on the meta device is far larger than the files.

    Missing weights would be initialised and then refused; that must not use all memory first.
    """
    if sum(weight.numel() for weight in described.parameters()) > 2 * numbers:
        raise ValueError("the network it describes has far more weights than the files hold")


def _processing(
    folder: Path, config: dict[str, Any], given: dict[str, Any] | None
) -> Preprocessing:
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
    with _refused_as(f"{PREPROCESSOR} in {folder.name} cannot be used"):
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


# --- timm ------------------------------------------------------------------------------------


def _of_timm(
    folder: Path, config: dict[str, Any], numbers: int
) -> tuple[nn.Module, int, Preprocessing]:
    """The network, the number of its classes, and its preprocessing."""
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
    with _refused_as(f"{folder.name} cannot be read as an image classifier of timm", Exception):
        if not timm.is_model(name) or any(key in arguments for key in TIMM_REFUSED):
            raise ValueError(f"timm has no architecture {quoted(name)} with these arguments")
        classes = int(config.get("num_classes", given.get("num_classes", 1000)))
        with torch.device("meta"):
            described = timm.create_model(name, pretrained=False, num_classes=classes, **arguments)
        _check_justified(described, numbers)
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
