"""CUDA graphs in a run of ComfyUI: how many steps it has, and what memory they may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.cli_args
import comfy.model_management
import torch

from ...guidance.core.cuda_graph import EAGER, GraphCache


def graphs_of_run(guider: Any, shape: Sequence[int], steps: int) -> GraphCache:
    """The graphs of a guider's run of so many steps, with latents (B, ...) of this shape."""
    if getattr(comfy.cli_args.args, "disable_cuda_graphs", False):
        return EAGER

    def room(device: torch.device) -> float:
        # cond and uncond may be predicted in one batch; their memory is free between predictions
        model = guider.inner_model.memory_required([2 * shape[0], *shape[1:]])
        return free_bytes(device) - model

    return GraphCache(steps, room)


def free_bytes(device: torch.device) -> float:
    """Free memory of a device, with what torch holds and does not use."""
    return comfy.model_management.get_free_memory(device)
