"""Classifiers in ComfyUI: loaded, placed on devices, bound to the networks of a run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import torch

from ...guidance.checkpoints.checkpoint import DTYPES, Description
from ...guidance.classifiers.image import ImageClassifier
from ...guidance.classifiers.looks import NO_LOOKS, Looks
from ...guidance.classifiers.noisy import NoisyClassifier
from ...guidance.core.autograd import compute_dtype
from .files import read_file, weight_dtype
from .memory import memory_plan
from .model_info import PIXELS, space_of
from .patcher import placed
from .paths import CLASSIFIERS, image_classifier_path
from .vae import PlacedVAE


@dataclass(frozen=True)
class PlacedClassifier:
    """The value of a NOISY_CLASSIFIER socket: the classifier and the patcher of its network.

    vae: decodes a model's latents for a classifier of images.
    """

    classifier: NoisyClassifier | ImageClassifier
    patcher: Any
    file_name: str
    description: Description | None = None
    vae: PlacedVAE | None = None

    def patchers(self, model: Any) -> list[Any]:
        """The models to load together with this MODEL."""
        decoded = self.classifier.reads_images and space_of(model) != PIXELS
        return [self.patcher, self.vae.patcher] if decoded and self.vae else [self.patcher]

    def bind(self, patchers: list[Any], model: Any) -> NoisyClassifier | ImageClassifier:
        """The classifier with the networks of `patchers`, for the latents of a base model."""
        network, *vae = (patcher.model for patcher in patchers)
        if isinstance(self.classifier, NoisyClassifier):
            saving = self.classifier.with_network(network)
            return saving.with_memory_plan(functools.partial(memory_plan, network))
        if self.vae is None or not vae:
            return self.classifier.with_network(network)
        decode = functools.partial(self.vae.decode, vae[0], model)
        return self.classifier.with_network(network, decode)

    def on_device(self) -> NoisyClassifier | ImageClassifier:
        """Loads the network onto the compute device; for use outside a sampling run."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.classifier


def load_classifier(name: str, dtype: str, **overrides: Any) -> PlacedClassifier:
    """The classifier of this name, in main memory until it is used."""
    checkpoint = read_file(CLASSIFIERS, name, "classifier", overrides)
    device = comfy.model_management.get_torch_device()
    weights = weight_dtype(checkpoint, dtype)
    compute = comfy.model_management.unet_manual_cast(weights, device)
    # gradients flow through these weights: they must not be inference tensors
    with torch.inference_mode(False):
        network = checkpoint.network(weights)
        network.compute_dtype = compute or weights
        return place_noisy(network, checkpoint.description, name)


def place_noisy(network: Any, description: Description, name: str) -> PlacedClassifier:
    """The classifier of a network, in main memory until it is used."""
    about = description
    classifier = NoisyClassifier(network, about.noise_schedule, about.labels, about.space)
    network.to(comfy.model_management.unet_offload_device())
    return PlacedClassifier(classifier, placed(network), name, description)


def load_image_classifier(
    name: str,
    gradient: str,
    dtype: str,
    vae: comfy.sd.VAE | None = None,
    looks: Looks = NO_LOOKS,
) -> PlacedClassifier:
    """A classifier of clean images, in main memory until it is used."""
    from ...guidance.checkpoints.image_classifiers import open_image_classifier

    classifier = open_image_classifier(image_classifier_path(name), gradient, looks)
    return _place_clean(classifier, name, dtype, vae)


def load_zero_shot_classifier(
    name: str,
    classes: list[str],
    template: str,
    gradient: str,
    dtype: str,
    vae: comfy.sd.VAE | None = None,
    looks: Looks = NO_LOOKS,
) -> PlacedClassifier:
    """A classifier whose classes are lines of text, in main memory until it is used."""
    from ...guidance.checkpoints.zero_shot import open_zero_shot_classifier

    path = image_classifier_path(name)
    classifier = open_zero_shot_classifier(path, classes, template, gradient, looks)
    return _place_clean(classifier, name, dtype, vae)


def _place_clean(
    classifier: ImageClassifier, name: str, dtype: str, vae: comfy.sd.VAE | None
) -> PlacedClassifier:
    """The classifier of clean images on the offload device, in this dtype."""
    device = comfy.model_management.get_torch_device()
    stored = compute_dtype(classifier.network, torch.empty(0))
    weights = stored if dtype == "auto" else DTYPES[dtype]
    # its layers are plain torch modules, so the weights are stored in the compute dtype
    compute = comfy.model_management.unet_manual_cast(weights, device) or weights
    with torch.inference_mode(False):
        classifier.network.to(comfy.model_management.unet_offload_device(), compute)
    placed_vae = None if vae is None else PlacedVAE.of(vae)
    return PlacedClassifier(classifier, placed(classifier.network), name, vae=placed_vae)
