"""Models without streamed weights, for gradients: core's delegates of streamed ones."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management
import torch

from .patcher import is_streamed

USE_CHEAP = "set gradient to cheap on the node that loads the classifier"
NOT_POSSIBLE = f"so an exact gradient is not possible; {USE_CHEAP}"
STREAMED = f"has weights that are streamed (dynamic VRAM), {NOT_POSSIBLE}"
NO_STREAMING = "start ComfyUI with --disable-dynamic-vram"

# core's delegate of each streamed model: its weights, shared by all MODELs of it (LoRAs differ)
_delegates: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def not_streamed(patcher: Any) -> Any | None:
    """The patcher; of a streamed one, core's delegate for what streaming cannot do.

    The delegate has the same patches, LoRAs, wrappers and options. Its weights are read from the
    file again, and core loads them like those of any model. None if core cannot make one.
    """
    if not is_streamed(patcher):
        return patcher
    if not hasattr(patcher, "get_non_dynamic_delegate"):
        return None  # ComfyUI 0.19
    if patcher.model in _delegates:
        patcher.non_dynamic_delegate_model = _delegates[patcher.model]
    try:
        delegate = patcher.get_non_dynamic_delegate()
    except (RuntimeError, TypeError):  # its loader is a custom node's and cannot read it again
        return None
    _delegates[patcher.model] = delegate.get_clone_model_override()
    return delegate


def differentiable(model: Any) -> Any:
    """The MODEL, or its delegate if its weights are streamed.

    Raises ValueError with one sentence if there is none, or if it does not fit into memory.
    """
    if not is_streamed(model):
        return model
    if model.model not in _delegates:
        _check_room(model)
    delegate = not_streamed(model)
    if delegate is None:
        raise ValueError(f"model {STREAMED}, or {NO_STREAMING}.")
    return delegate


def _check_room(model: Any) -> None:
    """Before anything is read. Core unloads other models, so all of the device counts.

    What the graph needs is not known before a run; `predict_with_graph` makes do with what is left.
    """
    size = model.model_size()
    total = comfy.model_management.get_total_memory(model.load_device)
    room = total - comfy.model_management.minimum_inference_memory()
    if size > room:
        raise ValueError(
            f"model {STREAMED}: it has {_gigabytes(size)}, and the device has room for "
            f"{_gigabytes(max(room, 0))}."
        )
    free = comfy.model_management.get_free_memory(torch.device("cpu"))
    if size > free:
        raise ValueError(
            f"model {STREAMED}: a second copy of its {_gigabytes(size)} would have to be in main "
            f"memory, where {_gigabytes(free)} are free."
        )


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.1f} GB"
