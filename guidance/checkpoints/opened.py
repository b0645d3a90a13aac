"""An opened image classifier, independent of its file format."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from ..classifiers.image import ImageClassifier
from ..classifiers.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class OpenedClassifier:
    """A network as stored, frozen, in eval mode, with its description."""

    network: nn.Module
    num_classes: int
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    labels: tuple[str, ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights; fp32 for a network without weights."""
        floats = (p.dtype for p in self.network.parameters() if p.is_floating_point())
        return next(floats, torch.float32)

    def classifier(self, gradient: str = "cheap") -> ImageClassifier:
        """The classifier with this kind of gradient."""
        about = (self.preprocessing, self.num_classes, self.labels)
        return ImageClassifier(self.network, *about, gradient=gradient)
