"""Gradients inside loops without a graph, and of networks that ComfyUI loads and moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

FP16_LOSS_SCALE = 1024.0  # 2**16 overflows


@contextmanager
def tracked(x: Tensor, wanted: bool = True) -> Iterator[Tensor]:
    """Yields x, or if `wanted` a copy of x with a graph, during the block.

    Also works inside torch.inference_mode and under no_grad.
    """
    if not wanted:
        yield x
        return
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_(True)


def scaled_gradient(value: Tensor, x: Tensor, *dtypes: torch.dtype) -> Tensor:
    """d value / d x, of a value that was computed in these dtypes."""
    scale = loss_scale(*dtypes)
    (gradient,) = torch.autograd.grad(value * scale, x)
    return gradient / scale


def loss_scale(*dtypes: torch.dtype) -> float:
    """Of values computed in these dtypes: in fp16, gradients of small values are 0 without it."""
    return FP16_LOSS_SCALE if torch.float16 in dtypes else 1.0


def use_ordinary_weights(network: nn.Module) -> None:
    """Replaces weights that were created or moved in inference mode with ordinary copies.

    torch cannot save inference tensors for backward, and ComfyUI loads, moves and reloads models
    inside inference mode. It copies one weight at a time, and only after such a move. Call it
    outside of inference mode.
    """
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_inference():
                module._parameters[name] = nn.Parameter(weight.clone(), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


def compute_dtype(network: nn.Module, x: Tensor) -> torch.dtype:
    """The network's compute dtype: its `compute_dtype`, its weights' dtype, or x's."""
    said = getattr(network, "compute_dtype", None)
    if said is not None:
        return said
    floats = (p.dtype for p in network.parameters() if p.is_floating_point())
    return next(floats, x.dtype)


def log_softmax(logits: Tensor) -> Tensor:
    """At least in fp32, because fp16 gradients of unlikely classes underflow to zero."""
    return at_least_fp32(logits).log_softmax(dim=-1)


def at_least_fp32(values: Tensor) -> Tensor:
    """The values in fp32, or as they are in fp64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def is_weight(tensor: Tensor) -> bool:
    """Whether it is a weight of a network, or a view of one, such as its transpose in a product."""
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def graph_despite_writes() -> AbstractContextManager:
    """Torch's graph of the block stays valid where a model writes into its tensors, as Flux does.

    The graph keeps copies of what its backward pass reads, except of weights.
    """

    def copied(tensor: Tensor) -> Tensor:
        return tensor if is_weight(tensor) else tensor.detach().clone()

    return torch.autograd.graph.saved_tensors_hooks(copied, lambda tensor: tensor)
