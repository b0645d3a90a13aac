"""Classifier guidance as a wrapper around the prediction of any guider."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guidance.adm import EncoderUNet
from ...guidance.classifiers.gradient_cache import CachedClassifier, Memory
from ...guidance.core.host_copy import to_device
from ...guidance.core.labels import spread_labels
from ...guidance.core.noise import per_image
from ...guidance.sampling.classifier_guidance import Report, classifier_term
from ...guidance.sampling.strength import Strength
from ...guidance.sampling.trace import Trace
from ...guidance.schedules.schedule import GuidanceSchedule
from ..host import comfy_adapter as adapter

KEY = "classifier_guidance"
NAME = "label of Classifier Guidance"


def check_fit(placed: adapter.PlacedClassifier, model: Any) -> None:
    """Raises ValueError when the classifier cannot steer this MODEL: other channels, no noise."""
    if adapter.starts_from_an_image(model.get_model_object("model_sampling")):
        raise ValueError(
            "model turns an image into another one without noise, so there is no noisy image for "
            "Classifier Guidance to read; use it on a model that samples from noise."
        )
    if placed.classifier.through_model:
        adapter.check_differentiable(model)
    if placed.classifier.reads_images and adapter.space_of(model) != adapter.PIXELS:
        _check_decoded(placed, model)
        return
    wanted, found = placed.classifier.channels, adapter.latent_channels(model)
    if wanted is not None and wanted != found:
        raise ValueError(
            f"{placed.file_name} was trained on {wanted}-channel images, but this model's latents "
            f"have {found} channels; use a classifier trained for this model's space."
        )
    space, here = placed.classifier.space, adapter.space_of(model)
    if space is not None and space != here:
        raise ValueError(
            f"{placed.file_name} was trained in the space {space}, but this model works in {here}; "
            "use a classifier trained for this model's space."
        )


def _check_decoded(placed: adapter.PlacedClassifier, model: Any) -> None:
    """Raises ValueError when images cannot be had from this MODEL's latents."""
    space, channels = adapter.space_of(model), adapter.latent_channels(model)
    dimensions = adapter.latent_dimensions(model)
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
            f"model's have {channels} channels; connect the VAE that belongs to the model."
        )


class GuidanceSum:
    """What the guides of one evaluation have added so far, innermost first.

    Guides in a row wrap each other, and each gets what those inside it have guided. All of them
    are to judge the model's own prediction, so that they add up: this is what to take away.
    """

    def __init__(self) -> None:
        self.terms: Tensor | float = 0.0

    def taken_from(self, denoised: Tensor) -> Tensor:
        """The model's own prediction, in the graph that `denoised` is in."""
        if isinstance(self.terms, float):
            return denoised
        with torch.inference_mode(False), torch.set_grad_enabled(denoised.requires_grad):
            return denoised - self.terms


@contextmanager
def shared_guidance_sum(options: dict) -> Iterator[GuidanceSum]:
    """The sum that all guides of this evaluation share; the outermost begins and ends it."""
    if adapter.ADDED_KEY in options:
        yield options[adapter.ADDED_KEY]
        return
    options[adapter.ADDED_KEY] = GuidanceSum()
    try:
        yield options[adapter.ADDED_KEY]
    finally:
        del options[adapter.ADDED_KEY]


@dataclass(frozen=True)
class ClassifierGuide:
    """A PREDICT_NOISE wrapper that adds what `classifier_term` gives to the denoised image."""

    placed: adapter.PlacedClassifier
    labels: list[int]
    strength: Strength
    key: str
    schedule: GuidanceSchedule | None = None
    every: int = 1

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None
    ) -> Tensor:
        """The guider's denoised image (B, C, H, W) at x and sigma (B,), guided."""
        # before the big model runs: a label or size that does not fit is said at once
        labels = to_device(x.device, torch.tensor(spread_labels(self.labels, len(x), NAME)))
        self._check_shape(x)
        strength = self._strength_at(executor.class_obj, x, sigma, model_options)
        if strength is None:
            return executor(x, sigma, model_options, seed)
        options = model_options.setdefault("transformer_options", {})
        with shared_guidance_sum(options) as added:
            added.terms = 0.0  # a wrapper further out may evaluate more than once
            memory = self._memory(options)
            x_in, denoised = self._predicted(executor, x, sigma, model_options, seed, memory)
            own = added.taken_from(denoised)
            about = (labels, strength, options, memory)
            term = self._term(executor.class_obj, x_in, own, sigma, *about)
            # whoever differentiates further out needs the graph; nobody else may keep it
            denoised = denoised if x.requires_grad else denoised.detach()
            asked = options.get(adapter.GRADIENT_KEY)
            if asked is not None:
                # the gradient that gives this term: algorithm 1 weighs it by another variance
                level, alpha = self._levels(executor.class_obj, sigma)
                asked.items.append(term * per_image(alpha / level**2, term))
                return denoised
            added.terms = added.terms + term
            return denoised + term

    def _predicted(
        self,
        executor: Any,
        x: Tensor,
        sigma: Tensor,
        model_options: dict,
        seed: Any,
        memory: Memory,
    ) -> tuple[Tensor, Tensor]:
        """x and the guider's denoised image; connected where the classifier asks for it."""
        if self.placed.classifier.through_model and memory.due:
            return adapter.predict_with_graph(executor, x, sigma, model_options, seed)
        return x, executor(x, sigma, model_options, seed)

    def _term(
        self,
        guider: Any,
        x: Tensor,
        denoised: Tensor,
        sigma: Tensor,
        labels: Tensor,
        strength: Strength,
        options: dict,
        memory: Memory,
    ) -> Tensor:
        """What is added to the denoised image."""
        patchers = guider.model_patcher.get_additional_models_with_key(self.key)
        # looked up by key: cloning a MODEL clones what is attached to it, too
        classifier = CachedClassifier(self.placed.bind(patchers, guider.inner_model), memory)
        level, alpha = self._levels(guider, sigma)
        report = _reporting(options.get(adapter.TRACE_KEY, ()), labels)
        return classifier_term(
            classifier,
            x,
            denoised,
            level,
            labels,
            strength,
            alpha,
            report,
            options.get(adapter.WATCH_KEY),
        ).detach()

    def _memory(self, options: dict) -> Memory:
        """This run's; the options are the run's own."""
        kept = options.setdefault(adapter.HELD_KEY, {})
        return kept.setdefault(self.key, Memory(self.every))

    def _levels(self, guider: Any, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return adapter.levels_of(guider.inner_model.model_sampling, sigma)

    def _strength_at(
        self, guider: Any, x: Tensor, sigma: Tensor, model_options: dict
    ) -> Strength | None:
        """How strongly the classifier is followed here; None where it is off."""
        if self.schedule is None:
            return self.strength
        place = adapter.place_of(guider, sigma, model_options)
        return self.strength.at(self.schedule, place, len(x))

    def _check_shape(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise ValueError(
                f"Classifier Guidance steers images (B, C, H, W), but this latent is {_kind(x)}, "
                f"{tuple(x.shape)}; take Classifier Guidance away, or sample an image."
            )
        network = self.placed.classifier.network
        if isinstance(network, EncoderUNet):
            network.check_size(x.shape[-2:])


def _kind(x: Tensor) -> str:
    """What a latent that is no image is: core packs several into (B, 1, N)."""
    if x.ndim == 5:
        return "a video (B, C, T, H, W)"
    return "sound, or video and sound packed together" if x.ndim == 3 else "no image"


def _reporting(traces: tuple[Trace, ...], labels: Tensor) -> Report | None:
    """What tells the traces; nothing where there are none."""
    if not traces:
        return None

    def report(scales: Tensor, term: Tensor, log_probs: Tensor) -> None:
        chosen = labels[:, None]
        for trace in traces:
            trace.classifier(scales, term, log_probs.gather(1, chosen)[:, 0])

    return report
