"""The protocol of every classifier that can steer sampling.

A new kind of classifier is one class with `output` and `rescale`. From a point of the run and a
target, it computes a gradient and the weight of this gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.cuda_graph import EAGER, GraphCache
from ..core.host_copy import to_device
from ..core.labels import class_names
from ..core.noise import levels_like


@dataclass(frozen=True)
class SamplingPoint:
    """A point of a run: x (B, ...) = alpha x0 + sigma eps, and `denoised` (B, ...) = E[x0 | x].

    sigma and alpha are (B,) on x's device, in float64 where the device has it. generator: of the
    random numbers that a classifier needs, on the CPU; None is torch's own. graphs: the CUDA graphs
    of the run.
    """

    x: Tensor
    denoised: Tensor
    sigma: Tensor
    alpha: Tensor
    generator: torch.Generator | None = None
    graphs: GraphCache = EAGER

    @classmethod
    def at(
        cls, x: Tensor, denoised: Tensor, sigma: Tensor | float, alpha: Tensor | float = 1.0
    ) -> SamplingPoint:
        """From numbers, or from tensors with one value or (B,)."""
        sigma, alpha = levels_like(x, sigma, alpha)
        return cls(x, denoised, sigma, alpha)


@dataclass(frozen=True)
class Target:
    """The target of guidance: the label of each image, an int or LongTensor (B,).

    label_smoothing: the fraction of the target that is spread over all classes (`smoothed_target`).
    """

    labels: Tensor | int
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class ClassifierOutput:
    """The output of a classifier at a point.

    gradient (B, ...) and weight (B,): at scale 1, guidance adds weight * gradient to the denoised
    image. Each kind of classifier has its own gradient and weight. log_probs (B, classes):
    log p(y | x), or of a score (B, 1) the score itself. sigma, alpha (B,): the noise level of the
    gradient, for `rescale`. decoded (B,): `nan_unless_finite` of the images that a decoder made for
    it; None without a decoder.

    seen (B, ...): the predicted images, for a trace: of a classifier of clean images the RGB images
    in [-1, 1] that it read, of others E[x0 | x]. None if it is not a new output.
    """

    gradient: Tensor
    weight: Tensor
    log_probs: Tensor
    sigma: Tensor
    alpha: Tensor
    decoded: Tensor | None = None
    seen: Tensor | None = None


def nan_unless_finite(values: Tensor) -> Tensor:
    """0 for each image (B, ...) of finite values, else NaN; does not wait for the device."""
    return values.detach().flatten(1).mul(0).sum(dim=1).float()


class Classifier(Protocol):
    """A classifier that can steer.

    network: computes the logits. reads_images: it reads clean RGB images, also for latent models.
    through_model: its gradient passes through the model's prediction, so `denoised` must be
    connected with x in torch's graph. labels: the names of its classes, or None. num_classes,
    channels: None if they are not known. is_score: its log_probs are a score, one number per image.
    """

    network: nn.Module
    reads_images: bool

    @property
    def through_model(self) -> bool: ...  # noqa: D102

    @property
    def is_score(self) -> bool: ...  # noqa: D102

    @property
    def labels(self) -> tuple[str, ...] | None: ...  # noqa: D102

    @property
    def num_classes(self) -> int | None: ...  # noqa: D102

    @property
    def channels(self) -> int | None: ...  # noqa: D102

    def start(
        self, x: Tensor, sigma: Tensor, alpha: Tensor, target: Target, graphs: GraphCache
    ) -> None:
        """Starts what `output` computes of x alone, beside the diffusion model's prediction."""

    def output(self, point: SamplingPoint, target: Target) -> ClassifierOutput:
        """The gradient of the target's log-likelihood at this point."""

    def rescale(self, output: ClassifierOutput, sigma: Tensor, alpha: Tensor) -> ClassifierOutput:
        """An earlier output, rescaled to another noise level; sigma, alpha (B,)."""


def log_likelihood(log_probs: Tensor, target: Target) -> Tensor:
    """The target's log-likelihood, summed over the batch, from log p of every class (B, classes).

    Raises ValueError for a label that is not a class or does not fit the batch.
    """
    batch, classes = log_probs.shape
    labels = label_of_each(target.labels, batch)
    check_labels(labels, classes)
    return likelihood_of(log_probs, to_device(log_probs.device, labels), target.label_smoothing)


def likelihood_of(log_probs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """`log_likelihood` of labels (B,) that were checked and are on the device of log_probs."""
    if label_smoothing == 0:
        return log_probs.gather(1, labels[:, None]).sum()
    wanted = smoothed_target(labels, log_probs.shape[1], label_smoothing)
    return (wanted.to(log_probs) * log_probs).sum()


def smoothed_target(label: Tensor, classes: int, smoothing: float) -> Tensor:
    """(1 - a) one_hot(label) + a / K, (B, K): the target of the log-likelihood.

    label (B,), a = smoothing (Szegedy et al. 2016, "Rethinking the Inception Architecture",
    section 7).
    """
    exact = F.one_hot(label, classes).float()
    return (1 - smoothing) * exact + smoothing / classes


def label_of_each(label: Tensor | int, batch: int) -> Tensor:
    """The label of each image (B,); raises ValueError if it does not fit the batch."""
    index = torch.as_tensor(label, dtype=torch.long).clone()
    if index.ndim > 1 or (index.ndim == 1 and len(index) not in (1, batch)):
        raise ValueError(f"label has shape {tuple(index.shape)}; expected one, or {batch} of them.")
    return index.expand(batch)


def check_labels(labels: Tensor, classes: int) -> None:
    """Raises ValueError for a label that is not a class.

    Labels on a GPU were checked when they were parsed; reading them here would stall the step.
    """
    if labels.device.type != "cpu":
        return
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"label is {int(wrong[0])}, but the classes go from 0 to {classes - 1}.")


def class_name(classifier: Classifier, index: int) -> str:
    """The name of class `index`, or its number if it has no name."""
    names = class_names(classifier.num_classes or 0, classifier.labels)
    return names[index] if names else str(index)
