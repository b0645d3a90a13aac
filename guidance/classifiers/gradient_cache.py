"""A classifier that is asked in some evaluations only: its last answer serves the others."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Classifier, ClassifierOutput


class Memory:
    """The last answer of a run. every: it is asked in each so-many-th evaluation."""

    def __init__(self, every: int):
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1.")
        self.every = every
        self.evidence: ClassifierOutput | None = None
        self.count = 0

    @property
    def due(self) -> bool:
        """Whether the next evaluation asks."""
        return self.evidence is None or self.count % self.every == 0

    def matches_shape(self, x: Tensor) -> bool:
        """Whether the last answer is one about such images."""
        return self.evidence is not None and self.evidence.gradient.shape == x.shape


class CachedClassifier:
    """The classifier with a memory of this run, in its place.

    Between two questions the gradient stays as it is in the classifier's own coordinates, and is
    weighed for the noise level at hand.
    """

    def __init__(self, classifier: Classifier, memory: Memory):
        self.classifier, self.memory = classifier, memory
        self.network: nn.Module = classifier.network
        self.reads_images = classifier.reads_images

    @property
    def through_model(self) -> bool:
        """Whether the next answer goes through the model."""
        return self.classifier.through_model and self.memory.due

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of its classes."""
        return self.classifier.labels

    @property
    def num_classes(self) -> int | None:
        """Number of classes, where it is known."""
        return self.classifier.num_classes

    @property
    def channels(self) -> int | None:
        """Channels of what it reads, where they are known."""
        return self.classifier.channels

    def evidence(
        self,
        x: Tensor,
        denoised: Tensor,
        sigma: Tensor,
        label: Tensor | int,
        alpha: Tensor,
        label_smoothing: float = 0.0,
    ) -> ClassifierOutput:
        """What it says at x, or said last, for this noise level."""
        memory = self.memory
        if memory.due or not memory.matches_shape(x):
            memory.evidence = self.classifier.evidence(
                x, denoised, sigma, label, alpha, label_smoothing
            )
            memory.count = 0
        memory.count += 1
        assert memory.evidence is not None
        if memory.count == 1:
            return memory.evidence
        return self.classifier.rescale(memory.evidence, sigma, alpha)

    def rescale(self, seen: ClassifierOutput, sigma: Tensor, alpha: Tensor) -> ClassifierOutput:
        """See `Classifier.again`."""
        return self.classifier.rescale(seen, sigma, alpha)


def cached_classifier(classifier: Classifier, every: int) -> Classifier:
    """The classifier, asked in each `every`-th evaluation of one run."""
    memory = Memory(every)
    return classifier if every == 1 else CachedClassifier(classifier, memory)
