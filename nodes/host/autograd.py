"""Gradients through ComfyUI's own models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...guidance.core.autograd import graph_despite_writes, use_ordinary_weights
from ...guidance.core.bounded_read import one_line
from .hooks import replaced
from .patcher import is_streamed


def use_ordinary_attributes(owner: Any) -> None:
    """Like `use_ordinary_weights`, for an object that is not a module."""
    for name, value in vars(owner).items():
        if isinstance(value, Tensor) and value.is_inference():
            setattr(owner, name, value.clone())


USE_CHEAP = "set gradient to cheap on Load Image Classifier"


def check_differentiable(*patchers: Any) -> None:
    """Raises ValueError if a gradient cannot pass through these models."""
    if any(map(is_streamed, patchers)):
        raise ValueError(
            "model has weights that are streamed (dynamic VRAM), so an exact gradient is not "
            f"possible; {USE_CHEAP}, or start ComfyUI with --disable-dynamic-vram."
        )


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


def predict_with_graph(
    executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any
) -> tuple[Tensor, Tensor]:
    """x and the guider's denoised image, both (B, C, H, W), connected in torch's graph.

    If x already requires grad (for an outer wrapper), it is used as it is.
    """
    guider = executor.class_obj
    model, others = guider.inner_model, getattr(guider, "loaded_models", ())
    check_differentiable(guider.model_patcher, *others)
    found = (model, *(other.model for other in others))
    networks = [network for network in found if isinstance(network, torch.nn.Module)]
    _check_whole(networks, x.device)
    with torch.inference_mode(False), torch.enable_grad():
        for network in networks:
            use_ordinary_weights(network)
        use_ordinary_attributes(model.latent_format)
        x_in = x if x.requires_grad else x.detach().clone().requires_grad_(True)
        # core's models leave out the kernels without a backward pass, as for training
        training = replaced(comfy.model_management, "in_training", True)
        with differentiating(), graph_despite_writes(), training:
            # a copy: some patches write into the x they are given
            denoised = executor(x_in.clone(), sigma.clone(), model_options, seed)
    if not denoised.requires_grad:
        raise ValueError(
            "model, or a patch on it, predicts without torch's graph, so there is no exact "
            f"gradient; {USE_CHEAP}."
        )
    return x_in, denoised
