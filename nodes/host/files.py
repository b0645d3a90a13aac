"""Reads model files according to ComfyUI's settings."""

from __future__ import annotations

import logging
from typing import Any

import comfy.utils
import torch

from ...guidance.checkpoints.checkpoint import DTYPES, Checkpoint, read_checkpoint
from .paths import model_path

DTYPE_NAMES = ["auto", *DTYPES]


def read_file(folder: str, name: str, kind: str, overrides: dict[str, Any]) -> Checkpoint:
    """The file, mapped into memory unless this is disabled in ComfyUI."""
    mmap = not comfy.utils.DISABLE_MMAP
    checkpoint = read_checkpoint(model_path(folder, name), kind, mmap=mmap, **overrides)
    if checkpoint.path.suffix != ".safetensors":
        logging.info(
            "Classifier Guidance: %s was read without running code from it. Other programs may run "
            "code when they open a .pt file; convert it to a safe file with: "
            "python -m guidance convert IN.pt OUT.safetensors",
            checkpoint.path.name,
        )
    return checkpoint


def weight_dtype(checkpoint: Checkpoint, dtype: str) -> torch.dtype:
    """The chosen dtype; "auto" keeps the file's, or fp32 if the file's is not supported."""
    if dtype != "auto":
        return DTYPES[dtype]
    return checkpoint.dtype if checkpoint.dtype in DTYPES.values() else torch.float32
