"""From a file to a usable model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..adm import layers
from ..classifiers.compiling import compile_network
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
    compile: bool = False,
    economy: GradientMemoryPlan = WHOLE,
    **overrides: Any,
) -> NoisyClassifier:
    """A noisy classifier from a .safetensors, .pt or .pth file.

    dtype is "fp32", "bf16" or "fp16", or "auto": the weights stay as they are stored, and are
    computed in fp32 on a CPU. compile: torch.compile for its gradients, at the first of them;
    uncompiled with a warning where that fails. economy: how its gradients save memory.
    `overrides` are those of `read_checkpoint`. Raises CheckpointError with one sentence for a file
    that is missing, damaged, unsafe or something else.
    """
    asked = _asked(dtype)
    checkpoint = read_checkpoint(path, "classifier", noise_schedule, **overrides)
    compute = _computed_in(asked, checkpoint, device)
    classifier = build_classifier(checkpoint, asked, device, operations, compute)
    if compile:
        compile_network(classifier.network)
    return classifier.with_economy(economy)


def _asked(dtype: str) -> torch.dtype | None:
    """The named dtype; None for "auto"."""
    return None if dtype == "auto" else dtype_named(dtype)


def _computed_in(
    asked: torch.dtype | None, checkpoint: Checkpoint, device: torch.device | str
) -> torch.dtype:
    """The asked dtype, else the file's own, for which a CPU is too slow."""
    on_cpu = torch.device(device).type == "cpu"
    return asked or (torch.float32 if on_cpu else checkpoint.dtype)


def build_classifier(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    operations: Any = None,
    compute_dtype: torch.dtype | None = None,
) -> NoisyClassifier:
    """The classifier of a checkpoint that was read already.

    Its weights are kept in `dtype` (None: as stored) and cast to `compute_dtype` (None: the same)
    when they are used.
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
    asked = _asked(dtype)
    checkpoint = read_checkpoint(path, "diffusion", noise_schedule, **overrides)
    network = checkpoint.network(layers, asked).to(device)
    network.compute_dtype = _computed_in(asked, checkpoint, device)
    return DiffusionModel(
        network, checkpoint.description.noise_schedule, checkpoint.description.labels
    )
