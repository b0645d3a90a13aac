"""Loads usable models from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..classifiers.noisy import NoisyClassifier
from ..sampling.model import DiffusionModel
from .checkpoint import Description, dtype_named, read_checkpoint


def load_classifier(
    path: str | Path,
    *,
    noise_schedule: str = "auto",
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
    compile: bool = False,
    **overrides: Any,
) -> NoisyClassifier:
    """A noisy classifier from a .safetensors, .pt or .pth file.

    dtype is "fp32", "bf16", "fp16", or "auto": the weights keep their stored dtype, and a CPU
    computes in fp32. compile: torch.compile writes kernels for the network, which do in one pass
    what takes torch's own several, and keep channels-last maps; the first gradient of each image
    size and batch then takes a minute or more. `overrides` are those of `read_checkpoint`, such as
    num_heads. Raises CheckpointError with one sentence if the file is missing, damaged, unsafe or
    not a classifier.
    """
    network, about = _loaded(
        path, "classifier", dtype, device, overrides | {"noise_schedule": noise_schedule}
    )
    if compile:
        network.compile(dynamic=False, fullgraph=True)
    return NoisyClassifier(network, about.noise_schedule, about.labels, about.space)


def load_adm(
    path: str | Path,
    *,
    noise_schedule: str = "auto",
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
    **overrides: Any,
) -> DiffusionModel:
    """An ADM diffusion model from a file; arguments and errors as for `load_classifier`."""
    network, about = _loaded(
        path, "diffusion", dtype, device, overrides | {"noise_schedule": noise_schedule}
    )
    return DiffusionModel(network, about.noise_schedule, about.labels)


def _loaded(
    path: str | Path,
    kind: str,
    dtype: str,
    device: torch.device | str,
    overrides: dict[str, Any],
) -> tuple[Any, Description]:
    """The network of a file of this kind on the device, and the file's description."""
    chosen = None if dtype == "auto" else dtype_named(dtype)
    checkpoint = read_checkpoint(path, kind, **overrides)
    network = checkpoint.network(chosen).to(device)
    # half precision is slow on a CPU
    default = torch.float32 if torch.device(device).type == "cpu" else checkpoint.dtype
    network.compute_dtype = chosen or default
    return network, checkpoint.description
