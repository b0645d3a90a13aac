"""ComfyUI's side of training: device, memory, progress, and the file to resume from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch

if TYPE_CHECKING:  # loaded when something is trained
    from ...guidance.training.resume import ResumeFile


KEPT_DAYS = 30  # that the state of a training is kept after its last step


def check_room(size: int, what: str) -> None:
    """Raises ValueError if main memory has no room for this many bytes."""
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if size > free:
        raise ValueError(
            f"{what} need {size / 2**30:.1f} GB of memory, but only {free / 2**30:.1f} GB are "
            "free; choose a smaller size or fewer images."
        )


def train_in_bf16(precision: str) -> bool:
    """Whether to train in bf16; "auto": if the GPU supports it."""
    device = comfy.model_management.get_torch_device()
    if precision != "auto":
        return precision == "bf16"
    return device.type != "cpu" and comfy.model_management.should_use_bf16(device)


def prepare_training() -> torch.device:
    """The device, after unloading all models from it."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cpu":
        comfy.model_management.unload_all_models()
    return device


def training_progress(steps: int) -> Callable[[int, float], None]:
    """A function to call after each step: updates the progress bar and stops a cancelled run."""
    bar = comfy.utils.ProgressBar(steps)

    def on_step(step: int, loss: float) -> None:
        bar.update_absolute(step, steps)
        comfy.model_management.throw_exception_if_processing_interrupted()

    return on_step


def training_resume(settings: dict[str, Any]) -> ResumeFile:
    """The file that keeps a training with these settings until it ends.

    Deletes those of trainings that were abandoned long ago.
    """
    from ...guidance.training.resume import SUFFIX, ResumeFile, prune

    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]
    folder = Path(folder_paths.get_user_directory()) / "classifier_guidance"
    file = ResumeFile(folder / f"{key}{SUFFIX}", settings)
    for name in prune(folder, KEPT_DAYS, file.path):
        logging.info(
            "Classifier Guidance: deleted %s, the state of a training that was stopped more than "
            "%d days ago",
            name,
            KEPT_DAYS,
        )
    return file
