"""Model files, as ComfyUI's settings want them read."""

from __future__ import annotations

import logging
from typing import Any

import comfy.utils
import torch

from ...guidance.checkpoints.checkpoint import DTYPES, Checkpoint, read_checkpoint
from .paths import model_path

DTYPE_NAMES = ["auto", *DTYPES]


def read_file(folder: str, name: str, kind: str, overrides: dict[str, Any]) -> Checkpoint:
    """The file, mapped into memory unless ComfyUI was told not to."""
    mmap = not comfy.utils.DISABLE_MMAP
    checkpoint = read_checkpoint(model_path(folder, name), kind, mmap=mmap, **overrides)
    if checkpoint.path.suffix != ".safetensors":
        logging.info(
            "Classifier Guidance: %s was read without running what is in it; for a file that other "
            "programs can open as safely, use: python -m guidance convert IN.pt OUT.safetensors",
            checkpoint.path.name,
        )
    return checkpoint


def weight_dtype(checkpoint: Checkpoint, dtype: str) -> torch.dtype:
    """The asked one; "auto" keeps what the file has, fp32 where that is none of the three."""
    if dtype != "auto":
        return DTYPES[dtype]
    return checkpoint.dtype if checkpoint.dtype in DTYPES.values() else torch.float32
