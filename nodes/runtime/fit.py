"""Checks that a classifier can steer a MODEL, before anything is sampled."""

from __future__ import annotations

from typing import Any

from ..host import model_info
from ..host.classifiers import PlacedClassifier


def check_fit(placed: PlacedClassifier, model: Any) -> None:
    """Raises ValueError if the classifier cannot steer this MODEL: other channels, no noise."""
    if model_info.starts_from_an_image(model.get_model_object("model_sampling")):
        raise ValueError(
            "model transforms an image without noise, so there is no noisy image for Classifier "
            "Guidance to read; use a model that samples from noise."
        )
    if placed.classifier.reads_images and model_info.space_of(model) != model_info.PIXELS:
        _check_decoded(placed, model)
        return
    wanted, found = placed.classifier.channels, model_info.latent_channels(model)
    if wanted is not None and wanted != found:
        raise ValueError(
            f"{placed.file_name} was trained on {wanted}-channel images, but this model's latents "
            f"have {found} channels; use a classifier trained for this model's space."
        )
    space, here = placed.classifier.space, model_info.space_of(model)
    if space is not None and space != here:
        raise ValueError(
            f"{placed.file_name} was trained in the space {space}, but this model works in {here}; "
            "use a classifier trained for this model's space."
        )


def _check_decoded(placed: PlacedClassifier, model: Any) -> None:
    """Raises ValueError if this MODEL's latents cannot be decoded to images."""
    space, channels = model_info.space_of(model), model_info.latent_channels(model)
    dimensions = model_info.latent_dimensions(model)
    if dimensions != 2:
        raise ValueError(
            f"model works on {space} latents, which are {'video' if dimensions == 3 else 'sound'}; "
            "Classifier Guidance steers images."
        )
    if placed.vae is None:
        raise ValueError(
            f"{placed.file_name} reads images, but this model works on {space} latents; connect "
            "the model's VAE to vae on Load Image Classifier."
        )
    if placed.vae.channels != channels:
        raise ValueError(
            f"vae on Load Image Classifier decodes {placed.vae.channels}-channel latents, but this "
            f"model's have {channels} channels; connect the model's VAE."
        )
