"""Loads usable models from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..adm import layers
from ..classifiers.gradient_memory import WHOLE, GradientMemoryPlan
from ..classifiers.noisy import NoisyClassifier
from ..sampling.model import DiffusionModel
from .checkpoint import Checkpoint, dtype_named, read_checkpoint


def load_classifier(
    path: str | Path,
    *,
    noise_schedule: str = "auto",
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
    operations: Any = None,
    memory_plan: GradientMemoryPlan = WHOLE,
    **overrides: Any,
) -> NoisyClassifier:
    """A noisy classifier from a .safetensors, .pt or .pth file.

    dtype is "fp32", "bf16", "fp16", or "auto": the weights keep their stored dtype, and a CPU
    computes in fp32. memory_plan: how its gradients save memory. `overrides` are those of
    `read_checkpoint`. Raises CheckpointError with one sentence if the file is missing, damaged,
    unsafe or not a classifier.
    """
    requested = _requested_dtype(dtype)
    checkpoint = read_checkpoint(path, "classifier", noise_schedule, **overrides)
    compute = _compute_dtype(requested, checkpoint, device)
    classifier = build_classifier(checkpoint, requested, device, operations, compute)
    return classifier.with_memory_plan(memory_plan)


def _requested_dtype(dtype: str) -> torch.dtype | None:
    """The named dtype; None for "auto"."""
    return None if dtype == "auto" else dtype_named(dtype)


def _compute_dtype(
    requested: torch.dtype | None, checkpoint: Checkpoint, device: torch.device | str
) -> torch.dtype:
    """The chosen dtype, else the file's; fp32 on a CPU, where half precision is slow."""
    on_cpu = torch.device(device).type == "cpu"
    return requested or (torch.float32 if on_cpu else checkpoint.dtype)


def build_classifier(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    operations: Any = None,
    compute_dtype: torch.dtype | None = None,
) -> NoisyClassifier:
    """The classifier of a loaded checkpoint.

    Its weights are stored in `dtype` (None: as in the file) and cast to `compute_dtype` (None: the
    same) when they are used.
    """
    network = checkpoint.network(operations or layers, dtype).to(device)
    network.compute_dtype = compute_dtype or dtype or checkpoint.dtype
    about = checkpoint.description
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
    requested = _requested_dtype(dtype)
    checkpoint = read_checkpoint(path, "diffusion", noise_schedule, **overrides)
    network = checkpoint.network(layers, requested).to(device)
    network.compute_dtype = _compute_dtype(requested, checkpoint, device)
    return DiffusionModel(
        network, checkpoint.description.noise_schedule, checkpoint.description.labels
    )
