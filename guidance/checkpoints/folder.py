"""A folder of Hugging Face files: what each must pass before transformers or timm opens it.

Nothing is downloaded, and code in a folder is never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ..core.bounded_read import MOST_CLASSES, open_safetensors, parse_json, quoted, read_text
from .checkpoint import CheckpointError, one_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of transformers 5, with the image processor in it
INDEX = "model.safetensors.index.json"
# Models that compare images with texts.
TEXT_AND_IMAGE = {"CLIPModel", "SiglipModel", "Siglip2Model"}
# Limits of values for which a network creates one object each, and of any other number.
MOST_LISTED = {"num_labels": MOST_CLASSES, "num_classes": MOST_CLASSES} | dict.fromkeys(
    ("num_hidden_layers", "num_layers", "num_encoder_blocks", "num_stages", "depth", "depths"), 1000
)
MOST_NUMBER = 1 << 31
# Options of every from_pretrained.
SAFELY = {"local_files_only": True, "trust_remote_code": False}
# What is raised for damaged files, and also for values of another type or size than expected.
DAMAGED = (OSError, SafetensorError)
UNEXPECTED = (*DAMAGED, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


@contextmanager
def refused_as(said: str, errors: Any = UNEXPECTED) -> Iterator[None]:
    """Raises a CheckpointError with these words for any of the errors."""
    try:
        yield
    except CheckpointError:
        raise
    except errors as error:
        raise CheckpointError(f"{said} ({one_line(error)}); download it again.") from error


@dataclass(frozen=True)
class ModelFolder:
    """A folder whose files were checked. preprocessor: None if it has no such file.

    weights: the number of values in its safetensors files.
    """

    path: Path
    config: dict[str, Any]
    preprocessor: dict[str, Any] | None
    weights: int

    @property
    def architectures(self) -> tuple[str, ...]:
        """The names of its model's classes in transformers."""
        return architectures_of(self.config)


def read_folder(folder: Path) -> ModelFolder:
    """The folder after all checks; raises CheckpointError with one sentence."""
    with refused_as(f"{CONFIG} in {folder.name} cannot be used"):
        config = read_json(folder, CONFIG)
        if config is None:
            raise CheckpointError(
                f"{folder.name} has no {CONFIG}; use the whole folder of a Hugging Face model, or "
                "a single file of weights."
            )
        preprocessor = read_json(folder, PREPROCESSOR)
        if preprocessor is None:
            preprocessor = (read_json(folder, PROCESSOR) or {}).get("image_processor")
        refuse_code(folder, config, preprocessor)
        weights = check_weights(folder)
        refuse_huge(config)
        return ModelFolder(folder, config, preprocessor, weights)


def architectures_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a config's classes in transformers."""
    named = config.get("architectures")
    return tuple(map(str, named)) if isinstance(named, list) else ()


def reads_text(folder: Path) -> bool:
    """Whether its config is one of CLIP, SigLIP or SigLIP 2, with both of their towers."""
    try:
        config = read_json(folder, CONFIG) or {}
    except CheckpointError:
        return False
    return bool(TEXT_AND_IMAGE & set(architectures_of(config)))


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in a file of the folder; None if there is no such file."""
    path = folder / name
    if not path.is_file():
        return None
    with refused_as(f"{name} in {folder.name} cannot be read"):
        values = parse_json(read_text(path))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
        return values


def refuse_huge(config: Any, name: str = CONFIG) -> None:
    """Raises ValueError for too many labels or layers, before they are created."""
    if isinstance(config, dict):
        for key, value in config.items():
            refuse_huge(value, key)
    elif isinstance(config, list):
        for value in config:
            refuse_huge(value, name)
    elif isinstance(config, int):
        most = MOST_LISTED.get(name, MOST_NUMBER)
        if not -MOST_NUMBER <= config <= most:
            raise ValueError(f"{quoted(name)} is {config:.3g}, more than {most}")


def refuse_code(folder: Path, *configs: dict[str, Any] | None) -> None:
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


def refuse_channels(name: str, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless the model reads RGB images."""
    channels = config.get("num_channels", 3)
    if channels != 3:
        raise CheckpointError(
            f"{name} reads {channels}-channel images; use a classifier of RGB images."
        )


def check_weights(folder: Path) -> int:
    """The number of values in the safetensors files; raises CheckpointError if they are damaged."""
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if not found:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt"))
        has = f"only {others[0]}" if others else "no weights"
        raise CheckpointError(
            f"{folder.name} has {has}, but {WEIGHTS} is needed (reading it runs no code); save the "
            "model again with save_pretrained, or download that file, too."
        )
    index = read_json(folder, INDEX)
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
        refused_as(f"{folder.name}/{name} is not a whole safetensors file"),
        open_safetensors(folder / name) as file,
    ):
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


def transformers_for(folder: Path) -> Any:
    """The transformers library; raises CheckpointError if it cannot be imported."""
    try:
        import transformers
    except Exception as error:  # a broken installation must not stop the start
        raise CheckpointError(
            f"{folder.name} needs transformers to be read; install it (pip install transformers)."
        ) from error
    return transformers


def pretrained(folder: Path, numbers: int, loader: str, kind: str) -> Any:
    """Loads the folder with transformers, offline and strictly.

    loader: an AutoModel of transformers. kind: what the folder should be, in its error message.
    """
    transformers = transformers_for(folder)
    # a bad config can make transformers raise any error
    with refused_as(f"{folder.name} cannot be read as {kind} of transformers", Exception):
        auto = getattr(transformers, loader)
        config = transformers.AutoConfig.from_pretrained(str(folder), **SAFELY)
        with torch.device("meta"):
            described = auto.from_config(config)
        check_justified(described, numbers)
        model, info = auto.from_pretrained(
            str(folder), config=config, use_safetensors=True, output_loading_info=True, **SAFELY
        )
        # extra tensors (such as a pre-training head) are ignored, as in transformers
        lost = [*info["missing_keys"], *info["mismatched_keys"]]
        if lost:
            raise ValueError(f"{len(lost)} tensors are missing or do not fit, {lost[0]} among them")
        return model


def check_justified(described: nn.Module, numbers: int) -> None:
    """Raises ValueError if a network on the meta device is far larger than the files.

    Missing weights would be initialised and then refused; that must not use all memory first.
    """
    if sum(weight.numel() for weight in described.parameters()) > 2 * numbers:
        raise ValueError("the network it describes has far more weights than the files hold")
