"""Gradients in loops that otherwise keep no graph, and of networks that others load and move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# fp16 gradients of small log-probabilities underflow; 2**16 would overflow in the other direction
FP16_LOSS_SCALE = 1024.0


@contextmanager
def tracked(x: Tensor, wanted: bool = True) -> Iterator[Tensor]:
    """Yields x as it is, or, where `wanted`, an x that torch keeps the graph of.

    For the time of the block; also inside torch.inference_mode and under no_grad.
    """
    if not wanted:
        yield x
        return
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_(True)


def use_ordinary_weights(network: nn.Module) -> None:
    """Replaces weights that were made or moved in inference mode by ordinary copies.

    torch cannot save inference tensors for backward, and ComfyUI loads, moves and reloads models
    inside inference mode. One copy at a time, and only after such a move. Call it outside
    inference mode.
    """
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_inference():
                module._parameters[name] = nn.Parameter(weight.clone(), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


def compute_dtype(network: nn.Module, x: Tensor) -> torch.dtype:
    """What the network computes in: its own `compute_dtype`, its weights' dtype, or x's."""
    said = getattr(network, "compute_dtype", None)
    if said is not None:
        return said
    floats = (p.dtype for p in network.parameters() if p.is_floating_point())
    return next(floats, x.dtype)


def log_softmax(logits: Tensor) -> Tensor:
    """In fp32 at least: in fp16 the gradients of unlikely classes underflow to exactly zero."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
