"""What guidance asks of a classifier, of noisy images or of clean ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.host_copy import to_device
from ..core.labels import class_names
from ..sampling.strength import smoothed_target


@dataclass(frozen=True)
class ClassifierOutput:
    """What a classifier says at x = alpha x0 + sigma eps.

    log_probs (B, classes): log p(y | x). gradient (B, ...): of the label's log-likelihood, with the
    levels sigma and alpha (B,) that it is weighed with: at scale 1 guidance adds
    sigma^2 / alpha * gradient to the denoised image.
    """

    gradient: Tensor
    log_probs: Tensor
    sigma: Tensor
    alpha: Tensor


class Classifier(Protocol):
    """A classifier that can guide.

    network: what computes its logits. reads_images: it reads finished RGB images, also where the
    sampler carries latents. through_model: its gradient goes through the model's prediction, in
    torch's graph.
    """

    network: nn.Module
    reads_images: bool

    @property
    def through_model(self) -> bool:
        """Whether `denoised` must be connected with x."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of its classes."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, where it is known."""

    @property
    def channels(self) -> int | None:
        """Channels of what it reads, where they are known."""

    def evidence(
        self,
        x: Tensor,
        denoised: Tensor,
        sigma: Tensor,
        label: Tensor | int,
        alpha: Tensor,
        label_smoothing: float = 0.0,
    ) -> ClassifierOutput:
        """What it says at x (B, ...), where the model predicts `denoised`; sigma, alpha (B,)."""

    def rescale(self, seen: ClassifierOutput, sigma: Tensor, alpha: Tensor) -> ClassifierOutput:
        """What it said, for another noise level; sigma, alpha (B,)."""


def log_likelihood(log_probs: Tensor, label: Tensor | int, label_smoothing: float = 0.0) -> Tensor:
    """The sum over the batch of log p(label | x), from log p of every class (B, classes).

    label is an int or LongTensor (B,); label_smoothing: see `strength.smoothed_target`. Raises
    ValueError for a label that is not a class or does not fit the batch.
    """
    index = _label_column(label, log_probs)
    if label_smoothing == 0:
        return log_probs.gather(1, index).sum()
    target = smoothed_target(index[:, 0], log_probs.shape[1], label_smoothing)
    return (target.to(log_probs) * log_probs).sum()


def label_of_each(label: Tensor | int, batch: int) -> Tensor:
    """The label of each image (B,); raises ValueError when it does not fit the batch."""
    index = torch.as_tensor(label, dtype=torch.long).clone()
    if index.ndim > 1 or (index.ndim == 1 and len(index) not in (1, batch)):
        raise ValueError(f"label has shape {tuple(index.shape)}; expected one, or {batch} of them.")
    return index.expand(batch)


def _label_column(label: Tensor | int, log_probs: Tensor) -> Tensor:
    batch, classes = log_probs.shape
    index = label_of_each(label, batch)
    # labels that sit on a GPU were checked when they were parsed: looking would stall the step
    if index.device.type == "cpu" and not bool(((index >= 0) & (index < classes)).all()):
        found = torch.as_tensor(label).tolist()
        raise ValueError(f"label is {found}, but the classes go from 0 to {classes - 1}.")
    return to_device(log_probs.device, index)[:, None]


def class_name(index: int, num_classes: int | None, labels: tuple[str, ...] | None) -> str:
    """What class `index` is called; its number where it has no name."""
    names = class_names(num_classes or 0, labels)
    return names[index] if names else str(index)
