"""Gradients through ComfyUI's own models."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...guidance.core.autograd import graph_despite_writes, use_ordinary_weights
from ...guidance.core.bounded_read import one_line
from ...guidance.core.recompute import recomputed_blocks
from ...guidance.core.replaced import replaced
from .delegate import NO_STREAMING, STREAMED, USE_CHEAP
from .patcher import is_streamed


def use_ordinary_attributes(owner: Any) -> None:
    """Like `use_ordinary_weights`, for an object that is not a module."""
    for name, value in vars(owner).items():
        if isinstance(value, Tensor) and value.is_inference():
            setattr(owner, name, value.clone())


def _check_differentiable(guider: Any) -> None:
    """Raises ValueError if a gradient cannot pass through the models of this run."""
    streamed = [patcher for patcher in _models_of(guider) if is_streamed(patcher)]
    if guider.model_patcher in streamed:
        raise ValueError(f"model {STREAMED}, or {NO_STREAMING}.")
    if streamed:
        what = "a model that works together with model, such as a ControlNet,"
        raise ValueError(f"{what} {STREAMED}, or {NO_STREAMING}.")


def _models_of(guider: Any) -> list[Any]:
    """The patchers that take part in a run; some guiders have a second MODEL."""
    own = [each for each in vars(guider).values() if isinstance(each, ModelPatcher)]
    return [guider.model_patcher, *own, *getattr(guider, "loaded_models", ())]


def _check_whole(networks: list[torch.nn.Module], device: torch.device) -> None:
    weights = (weight for network in networks for weight in network.parameters())
    if any(weight.device != device for weight in weights):
        raise ValueError(
            "model is only partly on the device because memory is short, so an exact gradient is "
            f"not possible; {USE_CHEAP}, or use a smaller image or batch."
        )


@contextlib.contextmanager
def differentiating() -> Iterator[None]:
    """Raises ValueError with one sentence for what torch cannot differentiate in the block."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise  # core frees memory and says so
        raise ValueError(
            "model, or a patch on it, cannot be differentiated, so an exact gradient is not "
            f"possible ({one_line(error)}); {USE_CHEAP}, or remove the patch."
        ) from error


def _training() -> AbstractContextManager:
    """Core's models leave out the kernels without a backward pass, as for training."""
    return replaced(comfy.model_management, "in_training", True)


def _short_of_memory(device: torch.device) -> Callable[[], bool]:
    """Whether the graph has taken half of the memory that is free now.

    Computing blocks again costs one more forward pass and runs the patches on them twice, so it is
    done only when needed. How large a graph becomes is not known in advance, so it is measured. The
    other half is for the backward passes of the model and of the VAE.
    """
    free = functools.partial(comfy.model_management.get_free_memory, device)
    enough = free() / 2
    return lambda: free() < enough


def predict_with_graph(
    executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any
) -> tuple[Tensor, Tensor]:
    """x and the guider's denoised image, both (B, C, H, W), connected in torch's graph.

    If x already requires grad (for an outer wrapper), it is used as it is.
    """
    guider = executor.class_obj
    model = guider.inner_model
    _check_differentiable(guider)
    found = dict.fromkeys((model, *(each.model for each in _models_of(guider))))
    networks = [network for network in found if isinstance(network, torch.nn.Module)]
    _check_whole(networks, x.device)
    with torch.inference_mode(False), torch.enable_grad():
        for network in networks:
            use_ordinary_weights(network)
        use_ordinary_attributes(model.latent_format)
        x_in = x if x.requires_grad else x.detach().clone().requires_grad_(True)
        recomputed = recomputed_blocks(networks, x.device, _short_of_memory(x.device), _training)
        with differentiating(), graph_despite_writes(), _training(), recomputed:
            # a copy: some patches write into the x they are given
            denoised = executor(x_in.clone(), sigma.clone(), model_options, seed)
    if not denoised.requires_grad:
        raise ValueError(
            "model, or a patch on it, predicts without torch's graph, so there is no exact "
            f"gradient; {USE_CHEAP}."
        )
    return x_in, denoised
