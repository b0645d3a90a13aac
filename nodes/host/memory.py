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
from . import hooks

KEY = "classifier_guidance_memory"
SPARE_SHARE = 0.2  # of the free memory, for fragmentation and temporary buffers


def memory_plan(network: torch.nn.Module, x: Tensor) -> GradientMemoryPlan:
    """The fastest way to compute the gradient at x (B, C, H, W) in the free memory."""
    if not isinstance(network, EncoderUNet):
        return WHOLE
    device = device_of(network, x.device)
    free = comfy.model_management.get_free_memory(device) * (1 - SPARE_SHARE)
    return memory_plan_within(free, network.layout, x.shape, compute_dtype(network, x))


def reserve_gradient_memory(model: Any) -> None:
    """Makes the MODEL reserve memory for the gradients of its attached classifiers.

    ComfyUI reserves activation memory for the diffusion model only. For other models it counts only
    the weights.
    """
    if not hooks.has_preparation_wrapper(model, KEY):  # once for all attached classifiers
        hooks.around_preparation(model, KEY, _with_room_for_gradients)


def _with_room_for_gradients(
    executor: Any, model: Any, noise_shape: Any, *arguments: Any, **options: Any
) -> Any:
    """Reserves memory for the fastest gradient if other models can make room, else the smallest."""
    base, own = model.model, model.model.memory_required
    before = base.__dict__.get("memory_required")  # another pack may have set it on this object
    whole, recomputed = (
        _gradients_bytes(model, noise_shape, recompute) for recompute in (False, True)
    )

    def memory_required(shape: Any, *more: Any, **named: Any) -> float:
        # core asks for twice the batch (preferred) and for the batch itself (the minimum)
        extra = whole if shape[0] > noise_shape[0] else recomputed
        return own(shape, *more, **named) + extra

    base.memory_required = memory_required
    try:
        return executor(model, noise_shape, *arguments, **options)
    finally:
        if before is None:
            base.__dict__.pop("memory_required", None)
        else:
            base.memory_required = before


def _gradients_bytes(model: Any, shape: Any, recompute: bool) -> int:
    """The largest need of one classifier, because gradients are computed one after the other."""
    networks = [patcher.model for patcher in model.get_nested_additional_models()]
    classifiers = [network for network in networks if isinstance(network, EncoderUNet)]
    size = tuple(shape[-2:])
    return max(
        (
            shape[0] * gradient_bytes(one.layout, size, _dtype_of(one), recompute)
            for one in classifiers
        ),
        default=0,
    )


def _dtype_of(network: torch.nn.Module) -> torch.dtype:
    return compute_dtype(network, torch.empty(0))
