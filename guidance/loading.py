"""From a file to a usable model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint, dtype_named, read_checkpoint
from .classifier import NoisyClassifier
from .diffusion import DiffusionModel


def load_classifier(
    path: str | Path,
    *,
    noise_schedule: str = "auto",
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
    operations: Any = None,
) -> NoisyClassifier:
    """A noisy classifier from a .safetensors, .pt or .pth file.

    dtype is "fp32", "bf16" or "fp16". Raises CheckpointError with one sentence for a file that
    is missing, damaged, unsafe or something else.
    """
    wanted = dtype_named(dtype)
    checkpoint = read_checkpoint(path, "classifier", noise_schedule)
    return build_classifier(checkpoint, wanted, device, operations)


def build_classifier(
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    operations: Any = None,
) -> NoisyClassifier:
    """The classifier of a checkpoint that was read already."""
    network = checkpoint.network(operations, dtype).to(device)
    about = checkpoint.description
    return NoisyClassifier(network, about.noise_schedule, about.labels, about.space)


def load_adm(
    path: str | Path,
    *,
    noise_schedule: str = "auto",
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
) -> DiffusionModel:
    """An ADM diffusion model from a file; arguments and errors as for `load_classifier`."""
    wanted = dtype_named(dtype)
    checkpoint = read_checkpoint(path, "diffusion", noise_schedule)
    network = checkpoint.network(dtype=wanted).to(device)
    return DiffusionModel(
        network, checkpoint.description.noise_schedule, checkpoint.description.labels
    )
