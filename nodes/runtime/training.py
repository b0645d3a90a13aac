"""What Train Noisy Classifier does with its inputs: the data, and the training itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..host.model_info import (
    PIXELS,
    is_single_frame,
    latent_channels,
    space_of,
    to_model_space,
)
from ..host.training import prepare_training, training_progress, training_resume

if TYPE_CHECKING:  # loaded when something is trained, not with ComfyUI
    from ...guidance.training.data import LabelledImages


def train(plan: Any) -> Any:
    from ...guidance.training.loop import TrainingContext
    from ...guidance.training.new_classifier import new_classifier

    resume = training_resume(plan.settings())
    run = TrainingContext(
        title="Train Noisy Classifier",
        device=str(prepare_training()),
        resume=resume,
        on_step=training_progress(plan.recipe.steps),
    )
    result = new_classifier(plan, run)
    resume.delete()
    return result


def training_data(images: Any, latents: Any, model: Any, labels: str) -> LabelledImages:
    """The images or latents with their labels, in the space of the model that will be steered.

    Raises ValueError where the inputs do not fit each other.
    """
    from ...guidance.training.data import LabelledImages

    x0, space = _space(images, latents, model)
    given = [name.strip() for name in labels.strip().split("\n" if "\n" in labels else ",")]
    if len(given) != len(x0):
        what = "images" if latents is None else "latents"
        raise ValueError(
            f"labels names {len(given)} classes, but there are {len(x0)} {what}; give one for each."
        )
    names = sorted(
        set(given), key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)
    )
    index = torch.tensor([names.index(name) for name in given])
    return LabelledImages(x0, index, tuple(names), space=space)


def _space(images, latents, model) -> tuple[torch.Tensor, str]:
    """x0 (N, C, H, W) in the sampler's scaling, and the name of its space.

    Raises ValueError if not exactly one of images and latents is given, or if the model is missing
    or does not match.
    """
    if (images is None) == (latents is None):
        found = "neither" if images is None else "both"
        raise ValueError(
            f"images and latents: {found} of them connected; connect images for a pixel-space "
            "model, or latents and the model for any other model."
        )
    if images is not None:
        if model is not None and space_of(model) != PIXELS:
            raise ValueError(
                f"model works on {space_of(model)} latents, but images are connected; encode them "
                "with VAE Encode and connect the latents instead."
            )
        return images[..., :3].movedim(-1, 1).clone() * 2 - 1, PIXELS
    if model is None:
        raise ValueError(
            "latents are connected, but no model; connect the model that the classifier will steer."
        )
    samples = latents["samples"]
    if samples.ndim != 4 and not is_single_frame(samples):
        raise ValueError(
            f"latents have the shape {tuple(samples.shape)}; a classifier is trained on images, "
            "(N, C, H, W)."
        )
    channels = latent_channels(model)
    if samples.shape[1] != channels:
        raise ValueError(
            f"latents have {samples.shape[1]} channels, but the model's have {channels}; encode "
            "the images with the model's VAE."
        )
    if not bool(samples.isfinite().all()):
        raise ValueError(
            "latents hold values that are not finite (NaN or infinity); encode the images again, "
            "with the VAE in fp32 or bf16."
        )
    return to_model_space(model, samples), space_of(model)
