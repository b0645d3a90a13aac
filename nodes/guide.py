"""Classifier guidance as a wrapper around the prediction of any guider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.adm import HalfUNet
from ..guidance.classifier import NoisyClassifier
from ..guidance.classifier_guidance import Report, classifier_term
from ..guidance.labels import spread_labels
from ..guidance.noise import per_image
from ..guidance.schedule import GuidanceSchedule
from ..guidance.strength import Strength
from ..guidance.trace import Trace
from . import comfy_adapter as adapter

KEY = "classifier_guidance"
NAME = "label of Classifier Guidance"


def check_fit(placed: adapter.PlacedClassifier, model: Any) -> None:
    """Raises ValueError when the classifier cannot steer this MODEL: other channels, no noise."""
    if adapter.starts_from_an_image(model.get_model_object("model_sampling")):
        raise ValueError(
            "model turns an image into another one without noise, so there is no noisy image for "
            "Classifier Guidance to read; use it on a model that samples from noise."
        )
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


@dataclass(frozen=True)
class ClassifierGuide:
    """A PREDICT_NOISE wrapper that adds what `classifier_term` gives to the denoised image."""

    classifier: NoisyClassifier
    labels: list[int]
    strength: Strength
    key: str
    schedule: GuidanceSchedule | None = None

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None
    ) -> Tensor:
        """The guider's denoised image (B, C, H, W) at x and sigma (B,), guided."""
        # before the big model runs: a label or size that does not fit is said at once
        labels = torch.tensor(spread_labels(self.labels, len(x), NAME))
        self._check_shape(x)
        guider = executor.class_obj
        strength = self._strength_at(guider, x, sigma, model_options)
        denoised = executor(x, sigma, model_options, seed)
        if strength is None:
            return denoised
        levels = adapter.levels_of(guider.inner_model.model_sampling, sigma)
        options = model_options.get("transformer_options", {})
        report = _reporting(options.get(adapter.TRACE_KEY, ()), labels)
        term = classifier_term(
            self._placed(guider), x, denoised, levels[0], labels, strength, levels[1], report
        )
        asked = options.get(adapter.GRADIENT_KEY)
        if asked is not None:
            # the gradient that gives this term: algorithm 1 weighs it by another variance
            asked.items.append(term * per_image(levels[1] / levels[0] ** 2, term))
            return denoised
        return denoised + term

    def _strength_at(
        self, guider: Any, x: Tensor, sigma: Tensor, model_options: dict
    ) -> Strength | None:
        """How strongly the classifier is followed here; None where it is off."""
        if self.schedule is None:
            return self.strength
        place = adapter.place_of(guider, sigma, model_options)
        return self.strength.at(self.schedule, place, len(x))

    def _placed(self, guider: Any) -> NoisyClassifier:
        """The classifier with the network that ComfyUI placed for this run.

        Looked up by key: cloning a MODEL clones what is attached to it, too.
        """
        (patcher,) = guider.model_patcher.get_additional_models_with_key(self.key)
        return self.classifier.with_network(patcher.model)

    def _check_shape(self, x: Tensor) -> None:
        if x.ndim != 4:
            raise ValueError(
                f"Classifier Guidance steers images (B, C, H, W); this latent is {tuple(x.shape)}."
            )
        if isinstance(self.classifier.network, HalfUNet):
            self.classifier.network.check_size(x.shape[-2:])


def _reporting(traces: tuple[Trace, ...], labels: Tensor) -> Report | None:
    """What tells the traces; nothing where there are none."""
    if not traces:
        return None

    def report(scales: Tensor, term: Tensor, log_probs: Tensor) -> None:
        chosen = labels.to(log_probs.device)[:, None]
        for trace in traces:
            trace.classifier(scales, term, log_probs.gather(1, chosen)[:, 0])

    return report
