"""Classifier guidance as a wrapper around the prediction of any guider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.adm import HalfUNet
from ..guidance.classifier import NoisyClassifier
from ..guidance.classifier_guidance import guide_denoised
from ..guidance.labels import spread_labels
from . import comfy_adapter as adapter

KEY = "classifier_guidance"
NAME = "label of Classifier Guidance"


def check_fit(placed: adapter.PlacedClassifier, model: Any) -> None:
    """Raises ValueError when the classifier was trained in another space than the model's."""
    wanted, found = placed.classifier.channels, adapter.latent_channels(model)
    if wanted is not None and wanted != found:
        raise ValueError(
            f"{placed.file_name} was trained on {wanted}-channel images, but this model's latents "
            f"have {found} channels; use a classifier trained for this model's space."
        )


@dataclass(frozen=True)
class ClassifierGuide:
    """A PREDICT_NOISE wrapper that adds scale * (sigma^2 / alpha) * grad log p(label | x)."""

    classifier: NoisyClassifier
    labels: list[int]
    scale: float
    key: str

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None
    ) -> Tensor:
        """The guider's denoised image (B, C, H, W) at x and sigma (B,), guided."""
        # before the big model runs: a label or size that does not fit is said at once
        labels = torch.tensor(spread_labels(self.labels, len(x), NAME))
        self._check_shape(x)
        denoised = executor(x, sigma, model_options, seed)
        sampling = executor.class_obj.inner_model.model_sampling
        alpha = adapter.alpha_of(sampling, sigma, self.classifier.schedule.max_ratio)
        gradient = self._placed(executor.class_obj).gradient(x, sigma, labels, alpha)
        asked = model_options.get("transformer_options", {}).get(adapter.GRADIENT_KEY)
        if asked is not None:
            asked.items.append(self.scale * gradient)
            return denoised
        return guide_denoised(denoised, gradient, sigma, self.scale, alpha)

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
