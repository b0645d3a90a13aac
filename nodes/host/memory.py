"""Memory for a classifier's gradients. ComfyUI does not count it by itself."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...guidance.adm import EncoderUNet
from ...guidance.classifiers.gradient_memory import (
    WHOLE,
    GradientMemoryPlan,
    gradient_bytes,
    memory_plan_within,
)
from ...guidance.core.autograd import compute_dtype
from ...guidance.core.host_copy import device_of
from ...guidance.core.replaced import replaced
from . import hooks

KEY = "classifier_guidance_memory"
SPARE_SHARE = 0.2  # of the free memory, for fragmentation and temporary buffers


def memory_plan(network: torch.nn.Module, x: Tensor) -> GradientMemoryPlan:
    """The fastest way to compute the gradient at x (B, C, H, W) in the free memory."""
    if not isinstance(network, EncoderUNet):
        return WHOLE
    device = device_of(network, x.device)
    free = comfy.model_management.get_free_memory(device) * (1 - SPARE_SHARE)
    return memory_plan_within(
        free, network.layout, (*x.shape[:2], *x.shape[-2:]), compute_dtype(network, x)
    )


def reserve_gradient_memory(model: Any) -> None:
    """Makes the MODEL reserve memory for the gradients of its attached classifiers.

    ComfyUI reserves activation memory for the diffusion model only. For other models it counts only
    the weights.
    """
    hooks.wrap_once(model, hooks.PREPARATION, KEY, _with_room_for_gradients)


def _with_room_for_gradients(
    executor: Any, model: Any, noise_shape: Any, *arguments: Any, **options: Any
) -> Any:
    """Reserves memory for the fastest gradient if other models can make room, else the smallest."""
    own = model.model.memory_required
    whole, recomputed = (
        _gradients_bytes(model, noise_shape, recompute) for recompute in (False, True)
    )

    def memory_required(shape: Any, *more: Any, **named: Any) -> float:
        # core asks for twice the batch (preferred) and for the batch itself (the minimum)
        extra = whole if shape[0] > noise_shape[0] else recomputed
        return own(shape, *more, **named) + extra

    with replaced(model.model, "memory_required", memory_required):
        return executor(model, noise_shape, *arguments, **options)


def _gradients_bytes(model: Any, shape: Any, recompute: bool) -> int:
    """The largest need of one classifier, because gradients are computed one after the other."""
    networks = [patcher.model for patcher in model.get_nested_additional_models()]
    size, x = tuple(shape[-2:]), torch.empty(0)
    needs = [
        gradient_bytes(network.layout, size, compute_dtype(network, x), recompute)
        for network in networks
        if isinstance(network, EncoderUNet)
    ]
    return shape[0] * max(needs, default=0)
